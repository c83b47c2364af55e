#!/usr/bin/env bash
# trl 1.16.0: SFTTrainer(loss_type="dft") reports as eval_loss the mean of -p*log(p) of the labels, the value of the loss it
# trains by. It is no measure of fit: it goes to 0 both for a model that is sure of the labels and for one that rules them
# out. A model that was trained away from the held-out rows has the lower eval_loss, so load_best_model_at_end, early
# stopping and a sweep by eval_loss choose the worse model. One would have sworn that a lower eval_loss is a better fit: the
# gradient of that loss, in which p is a constant, does lead there.
#
# Random weights, nothing is downloaded but the packages. Exits with 0 while that is so. Needs Python 3.10 or newer and
# a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/pip install --quiet --no-compile "torch==2.13.0" "transformers==5.24.0" "trl==1.16.0"
cat >check.py <<'PY'
import datasets
import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

torch.set_num_threads(1)
datasets.disable_progress_bars()
words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(50)}, unk_token="w0"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w2")
ROW = list(range(3, 20))
HELD_OUT = Dataset.from_list([{"input_ids": ROW}] * 4)
torch.manual_seed(0)
model = AutoModelForCausalLM.from_config(
    LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )
)


def eval_loss(kind):
    arguments = SFTConfig(
        output_dir="out", loss_type=kind, use_cpu=True, bf16=False, report_to=[], save_strategy="no", disable_tqdm=True,
        logging_strategy="no", per_device_eval_batch_size=4,
    )
    trainer = SFTTrainer(model, arguments, train_dataset=HELD_OUT, eval_dataset=HELD_OUT, processing_class=tokenizer)
    return trainer.evaluate()["eval_loss"]


def get_worse(steps):
    """Trains away from the held-out row."""
    ids = torch.tensor([ROW])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        (-model(ids, labels=ids).loss).backward()
        optimizer.step()
        optimizer.zero_grad()


print("torch", torch.__version__, "transformers", transformers.__version__, "trl", trl.__version__)
before = {kind: eval_loss(kind) for kind in ("nll", "dft")}
get_worse(5)
after = {kind: eval_loss(kind) for kind in ("nll", "dft")}
print("eval_loss before:", before)
print("eval_loss after: ", after)
assert after["nll"] > before["nll"] + 1
assert after["dft"] < before["dft"] / 2
PY
environment/bin/python -W ignore check.py
echo "as described: eval_loss under loss_type=dft fell while the model got worse"
