#!/usr/bin/env bash
# lightning 2.6.6: a checkpoint that is saved after fit stopped by max_steps within an epoch says that the epoch is
# complete. A run that goes on from it begins the next epoch: the rows that were left are never read, and the run ends with
# fewer steps than one that was not interrupted (14 in place of 20 here). Nothing is said, while a checkpoint that a
# callback saves within an epoch is resumed within it. One would have sworn that 4 of 10 steps are 4 of 10 steps.
#
# Nothing is downloaded but the packages. Exits with 0 while that is so. Needs Python 3.10 or newer and a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/pip install --quiet --no-compile "torch==2.13.0" "lightning==2.6.6"
cat >check.py <<'PY'
import lightning
import torch
from torch.utils.data import DataLoader

LOADER = DataLoader(torch.arange(10.0)[:, None])  # ten rows in their order, one a batch


class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.rows = []

    def training_step(self, batch, index):
        self.rows.append(int(batch))
        return (self.weight * batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(max_epochs, max_steps, ckpt_path=None):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=max_epochs, max_steps=max_steps, **quiet)
    model = Model()
    trainer.fit(model, LOADER, ckpt_path=ckpt_path)
    return trainer, model.rows


print("torch", torch.__version__, "lightning", lightning.__version__)
whole, rows = fit(max_epochs=2, max_steps=-1)
stopped, first = fit(max_epochs=2, max_steps=4)
stopped.save_checkpoint("stopped.ckpt")
saved = torch.load("stopped.ckpt", weights_only=False)  # written by this script just now
resumed, rest = fit(max_epochs=2, max_steps=-1, ckpt_path="stopped.ckpt")
print(f"without interruption: {whole.global_step} steps over {rows}")
print(f"stopped by max_steps=4: {first}; its checkpoint says epoch {saved['epoch']}, step {saved['global_step']}")
print(f"resumed: {rest}, {resumed.global_step} steps")
assert whole.global_step == 20
assert first == [0, 1, 2, 3]
assert (saved["epoch"], saved["global_step"]) == (1, 4)
assert rest == list(range(10))
assert resumed.global_step == 14
PY
environment/bin/python -W ignore check.py
echo "as described: an epoch that max_steps cut short is resumed as a complete one"
