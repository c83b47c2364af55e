#!/usr/bin/env bash
# transformers 5.23.0: Trainer.train(resume_from_checkpoint=...) follows the new num_train_epochs, warms up and decays by
# the new number of steps, and warns of a batch size that is another; a new learning_rate and a new weight_decay are
# ignored in silence. Both stand in the optimizer's and the scheduler's state, which are loaded over them, while
# trainer.args shows the new values. One would have sworn that arguments are either followed or refused.
#
# Random weights, nothing is downloaded but the packages. Exits with 0 while that is so. Needs Python 3.10 or newer and
# a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/pip install --quiet --no-compile "torch==2.13.0" "transformers==5.23.0" "accelerate==1.15.0"
cat >check.py <<'PY'
import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, Trainer, TrainingArguments

torch.set_num_threads(1)
ROWS = [{"input_ids": row, "labels": row} for row in torch.randint(3, 50, (20, 8), generator=torch.Generator().manual_seed(0))]


def trainer(**more):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    )
    settings = {
        "output_dir": "out", "per_device_train_batch_size": 1, "num_train_epochs": 1, "lr_scheduler_type": "constant",
        "learning_rate": 1e-3, "weight_decay": 0.0, "save_steps": 10, "logging_steps": 10, "use_cpu": True,
        "report_to": [], "disable_tqdm": True,
    }
    return Trainer(model, TrainingArguments(**{**settings, **more}), train_dataset=ROWS)


print("torch", torch.__version__, "transformers", transformers.__version__)
trainer().train()
resumed = trainer(learning_rate=1e-5, weight_decay=0.5, num_train_epochs=2)
resumed.train(resume_from_checkpoint="out/checkpoint-10")
rates = {row["step"]: row["learning_rate"] for row in resumed.state.log_history if "learning_rate" in row}
decays = {group["weight_decay"] for group in resumed.optimizer.param_groups}
print(f"asked for: learning_rate={resumed.args.learning_rate}, weight_decay={resumed.args.weight_decay}, 2 epochs")
print(f"got: learning rates by step {rates}, weight decays {decays}, {resumed.state.global_step} steps")
assert resumed.args.learning_rate == 1e-5
assert resumed.state.global_step == 40
assert set(rates.values()) == {1e-3}
assert decays == {0.0}
PY
environment/bin/python -W ignore check.py
echo "as described: a resumed run has the old learning rate and weight decay, and the new number of epochs"
