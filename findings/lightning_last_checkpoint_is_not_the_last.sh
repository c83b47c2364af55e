#!/usr/bin/env bash
# lightning 2.6.6: ModelCheckpoint(monitor=..., save_top_k=1, save_last=True) writes last.ckpt only when it writes the best
# one. After four epochs of which the second was best, last.ckpt is of the second: a run that is resumed from it repeats two
# epochs, and a model that is taken from it as the end of training is the best one instead. One would have sworn that
# last.ckpt is the last state. With save_top_k=-1, or without a monitor, it is.
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
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

LOADER = DataLoader(torch.arange(3.0)[:, None])
LOSSES = [1.0, 0.5, 0.7, 0.9]  # of the four epochs


class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, index):
        return (self.weight * batch).sum()

    def validation_step(self, batch, index):
        self.log("val_loss", LOSSES[self.current_epoch])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def last(folder, **settings):
    callback = ModelCheckpoint(dirpath=folder, save_last=True, **settings)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=len(LOSSES), callbacks=[callback], **quiet)
    trainer.fit(Model(), LOADER, LOADER)
    saved = torch.load(callback.last_model_path, weights_only=False)  # written by this script just now
    print(f"{settings}: trained {trainer.global_step} steps; last.ckpt is of epoch {saved['epoch']}, step {saved['global_step']}")
    return saved["epoch"], saved["global_step"]


print("torch", torch.__version__, "lightning", lightning.__version__)
assert last("top", monitor="val_loss", save_top_k=1) == (1, 6)
assert last("all", monitor="val_loss", save_top_k=-1) == (3, 12)
assert last("none") == (3, 12)
PY
environment/bin/python -W ignore check.py
echo "as described: last.ckpt is of the epoch that was best"
