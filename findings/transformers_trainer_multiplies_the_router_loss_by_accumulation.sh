#!/usr/bin/env bash
# transformers 5.23.0: with a mixture-of-experts model whose router loss is on (output_router_logits=True), Trainer adds
# the whole router loss to every micro-batch and divides only the cross-entropy by the tokens of the window. Under
# gradient_accumulation_steps=N the router loss therefore weighs N times its router_aux_loss_coef, in the gradient and in
# the logged loss. One would have sworn that 8 rows at once and 8 times 1 row are the same step, as they are without the
# router loss. TRL 1.16.0's SFTTrainer divides it by the window; Trainer does not.
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
from transformers import AutoModelForCausalLM, MixtralConfig, Trainer, TrainerCallback, TrainingArguments

torch.set_num_threads(1)
ROW = torch.arange(3, 19)
ROWS = [{"input_ids": ROW, "labels": ROW}] * 8  # eight times one row: a mean over rows is the value of one, routing included


class Gradient(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **more):
        self.router = model.model.layers[0].mlp.gate.weight.grad.clone()


def step(coefficient, batch_size, accumulation):
    config = MixtralConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, output_router_logits=coefficient > 0,
        router_aux_loss_coef=coefficient, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    arguments = TrainingArguments(
        output_dir="out", per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation, max_steps=1,
        max_grad_norm=0, use_cpu=True, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
    )
    gradient = Gradient()
    trainer = Trainer(model, arguments, train_dataset=ROWS, callbacks=[gradient])
    return trainer.train().training_loss, gradient.router


print("torch", torch.__version__, "transformers", transformers.__version__)
plain, _ = step(0.0, 8, 1)
plain_window, _ = step(0.0, 1, 8)
whole, router = step(1.0, 8, 1)
window, router_window = step(1.0, 1, 8)
print(f"without the router loss: 8 rows at once {plain:.4f}, 8 times 1 row {plain_window:.4f}")
print(f"with the router loss:    8 rows at once {whole:.4f}, 8 times 1 row {window:.4f}")
print(f"router loss: {whole - plain:.4f} and {window - plain_window:.4f}, ratio {(window - plain_window) / (whole - plain):.2f}")
print(f"the router's gradient: norms {router.norm():.4f} and {router_window.norm():.4f}")
assert abs(plain - plain_window) < 1e-4
assert abs((window - plain_window) / (whole - plain) - 8) < 0.05
assert router_window.norm() > 4 * router.norm()
PY
environment/bin/python -W ignore check.py
echo "as described: the router loss is counted once per micro-batch"
