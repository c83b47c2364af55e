#!/usr/bin/env bash
# lightning 2.6.6: a process that is sent SIGTERM during Trainer.fit (a scheduler's preemption, a container's stop) ends with
# exit code 0. Its handler raises an exception that is a SystemExit without a code, which is success. So the queue counts a
# run that was cut off as complete, `train && evaluate` goes on to evaluate, and nothing is run again. One would have sworn
# it is 143, as of the same process without fit, or any other code but 0.
#
# Nothing is downloaded but the packages. Exits with 0 while that is so. Needs Python 3.10 or newer and a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/pip install --quiet --no-compile "torch==2.13.0" "lightning==2.6.6"
cat >check.py <<'PY'
import os
import signal
import sys

import torch
from torch.utils.data import DataLoader


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


if sys.argv[1] == "plain":
    terminate()

import lightning


class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, index):
        if index == 3:
            terminate()
        return (self.weight * batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


print("torch", torch.__version__, "lightning", lightning.__version__, flush=True)
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
trainer = lightning.Trainer(accelerator="cpu", max_epochs=1, **quiet)
trainer.fit(Model(), DataLoader(torch.arange(10.0)[:, None]))
print("trained to the end", flush=True)
PY
outcome() { # plain|fit
    local code=0
    environment/bin/python -W ignore check.py "$1" >output.txt 2>&1 || code=$?
    echo "$code"
}
plain=$(outcome plain)
fit=$(outcome fit)
grep "^torch" output.txt
echo "SIGTERM to a process without fit: exit code $plain; during fit: exit code $fit"
test "$plain" = 143
grep -q "Received SIGTERM" output.txt
! grep -q "trained to the end" output.txt
test "$fit" = 0
echo "as described: a fit that SIGTERM cut off ends with exit code 0"
