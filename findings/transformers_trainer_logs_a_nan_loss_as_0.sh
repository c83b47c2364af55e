#!/usr/bin/env bash
# transformers 5.23.0: in place of a loss of NaN, Trainer logs the mean of the losses before it since the last log, which is
# 0.0 where there are none (logging_nan_inf_filter=True, the default). A model that became NaN goes on training to the end, its curve
# falls to 0.0, and train_loss is lower than that of the same run without the fault: whoever picks the lowest picks it.
# With logging_nan_inf_filter=False a single NaN, as of one row without a label, makes every later loss of the log NaN,
# though the model is sound and trains on. One would have sworn that the logged loss is NaN where, and only where, the loss
# was NaN.
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
import math

import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, Trainer, TrainerCallback, TrainingArguments

torch.set_num_threads(1)
SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
ROW = torch.arange(3, 19)
ROWS = [{"input_ids": ROW, "labels": ROW}] * 40
UNLABELLED = {"input_ids": ROW, "labels": torch.full_like(ROW, -100)}


class Breaks(TrainerCallback):
    """One weight is NaN from the 20th step on, as after a step that overflowed."""

    @torch.no_grad()
    def on_step_begin(self, args, state, control, model=None, **more):
        if state.global_step == 20:
            model.lm_head.weight[0, 0] = math.nan


def fit(rows, *callbacks, filtered=True):
    """(logged losses, train_loss, weights that are NaN, weights)."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=50, num_key_value_heads=2, **SHAPE))
    arguments = TrainingArguments(
        output_dir="out", per_device_train_batch_size=1, max_steps=40, logging_steps=5, learning_rate=1e-3, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True, log_level="error", logging_nan_inf_filter=filtered,
    )
    trainer = Trainer(model, arguments, train_dataset=rows, callbacks=list(callbacks))
    trainer.remove_callback(transformers.PrinterCallback)
    train_loss = trainer.train().training_loss
    losses = [round(line["loss"], 4) for line in trainer.state.log_history if "loss" in line]
    broken = sum(int(torch.isnan(one).sum()) for one in model.parameters())
    return losses, train_loss, broken, sum(one.numel() for one in model.parameters())


print("torch", torch.__version__, "transformers", transformers.__version__)
sound, sound_loss, broken, _ = fit(ROWS)
print(f"sound:             losses {sound}, train_loss {sound_loss:.4f}")
assert broken == 0
fallen, fallen_loss, broken, weights = fit(ROWS, Breaks())
print(f"NaN from step 20:  losses {fallen}, train_loss {fallen_loss:.4f}; {broken} of {weights} weights are NaN")
assert broken == weights
assert fallen[4:] == [0.0] * 4
assert fallen_loss < sound_loss
shown, shown_loss, broken, _ = fit([*ROWS[:17], UNLABELLED, *ROWS[18:]], filtered=False)
print(f"one row unlabelled, no filter: losses {shown}, train_loss {shown_loss}; {broken} weights are NaN")
assert broken == 0
assert sum(map(math.isnan, shown)) >= 1
assert all(map(math.isnan, shown[[math.isnan(loss) for loss in shown].index(True) :]))
PY
environment/bin/python -W ignore check.py
echo "as described: a NaN loss is logged as 0.0, and without the filter for ever"
