#!/usr/bin/env bash
# lightning 2.6.6: where the batches of an epoch are no multiple of accumulate_grad_batches, the optimizer steps at the
# epoch's end on the batches that are left, and the sum of their gradients is still divided by accumulate_grad_batches. A
# rest of one batch under accumulate_grad_batches=4 gives a quarter of the mean gradient; a data set of fewer batches than
# that gives every step so. Nothing is said. One would have sworn that a step has the mean gradient of the batches that
# it is of, as in transformers' Trainer (5.23.0), which divides by the batches of the window.
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


class Model(lightning.LightningModule):
    """The gradient of every batch of ones is 1, and so is the mean of any number of them."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.gradients = []

    def training_step(self, batch, index):
        return (self.weight * batch).mean()

    def on_before_optimizer_step(self, optimizer):
        self.gradients.append(self.weight.grad.item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def gradients(batches, max_epochs=2):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=max_epochs, accumulate_grad_batches=4, **quiet)
    model = Model()
    trainer.fit(model, DataLoader(torch.ones(batches, 1)))
    return model.gradients


print("torch", torch.__version__, "lightning", lightning.__version__)
whole, rest, few = gradients(8), gradients(9), gradients(3)
print(f"8 batches an epoch, 4 a step: gradients {whole}")
print(f"9 batches an epoch, 4 a step: gradients {rest}")
print(f"3 batches an epoch, 4 a step: gradients {few}")
assert whole == [1.0] * 4
assert rest == [1.0, 1.0, 0.25] * 2
assert few == [0.75] * 2
PY
environment/bin/python -W ignore check.py
echo "as described: the batches that are left at an epoch's end are divided by a whole window"
