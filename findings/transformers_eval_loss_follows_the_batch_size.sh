#!/usr/bin/env bash
# transformers 5.23.0: the Trainer's training loss is a mean over tokens, whatever the batch size and accumulation are; its
# eval_loss is a mean over rows of their batch's mean over tokens. So the same model on the same rows has another eval_loss at
# another per_device_eval_batch_size, or in another order, and none of them is the mean over tokens unless all rows are one
# batch. exp(eval_loss) is no perplexity, and load_best_model_at_end or early stopping may choose otherwise. Here one of two
# models is better at a batch of one, and the other at a batch of eight. One would have sworn that an evaluation without
# gradients doesn't depend on its batch size, and that training and evaluation of the same rows have one loss.
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
import torch.nn.functional as F
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, Trainer, TrainingArguments

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
PAD, IGNORED = 0, -100
SHORT, LONG = [5, 6, 7], list(range(10, 50))
ROWS = [SHORT, SHORT, SHORT, LONG, SHORT, SHORT, SHORT, LONG]


def collate(rows):
    width = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    labels = torch.tensor([row + [IGNORED] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "labels": labels, "attention_mask": (labels != IGNORED).long()}


def trainer(model, **arguments):
    own = TrainingArguments(
        "out", report_to=[], use_cpu=True, disable_tqdm=True, logging_steps=1, save_strategy="no", **arguments
    )
    return Trainer(model, own, data_collator=collate, train_dataset=ROWS, eval_dataset=ROWS)


def fitted(rows, steps):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, pad_token_id=PAD,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        model(**collate(rows)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def mean_over_tokens(model):
    losses = []
    for row in map(torch.tensor, ROWS):
        losses.append(F.cross_entropy(model(row[None]).logits[0, :-1], row[1:], reduction="none"))
    return float(torch.cat(losses).mean())


def evaluated(model, batch):
    return trainer(model, per_device_eval_batch_size=batch).evaluate()["eval_loss"]


def trained(model, batch):
    """The loss of one step of all rows, whose learning rate is 0."""
    cut = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": len(ROWS) // batch}
    own = trainer(model, max_steps=1, learning_rate=0.0, **cut)
    own.train()
    return own.state.log_history[0]["loss"]


print("torch", torch.__version__, "transformers", transformers.__version__)
models = {"fits short rows": fitted([SHORT], 20), "fits long rows": fitted([LONG], 20)}
losses = {}
for name, model in models.items():
    exact = mean_over_tokens(model)
    losses[name] = [evaluated(model, batch) for batch in (1, 2, 8)]
    steps = [trained(model, batch) for batch in (1, 2, 8)]
    print(f"{name}: {exact:.4f} nats a token")
    print("    eval_loss by batches of 1, 2, 8:", *(f"{loss:.4f}" for loss in losses[name]))
    print("    loss of a step of all rows by micro-batches of 1, 2, 8:", *(f"{loss:.4f}" for loss in steps))
    assert max(abs(loss - exact) for loss in (*steps, losses[name][-1])) < 1e-3
    assert min(abs(losses[name][0] - exact), abs(losses[name][1] - exact)) > 0.02
(short_by_one, _, short_by_eight), (long_by_one, _, long_by_eight) = losses.values()
assert short_by_one < long_by_one
assert short_by_eight > long_by_eight
PY
environment/bin/python -W ignore check.py | grep -v "^{"
echo "as described: eval_loss depends on per_device_eval_batch_size, and may prefer another model"
