#!/usr/bin/env bash
# torch 2.13.0: within one autocast the cast of a weight is kept for its next use, but only where the weight requires a
# gradient. Frozen weights, as those beside an adapter or of a teacher, are cast anew at every use: a model with LoRA in
# fp32 casts all of its base for every token that it writes, also under no_grad. One would have sworn that autocast's cache
# is of weights, the frozen ones first of all, since they never change.
#
# Nothing is downloaded but the packages. Exits with 0 while that is so. Needs Python 3.10 or newer and a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/pip install --quiet --no-compile "torch==2.13.0" "numpy==2.4.0"
cat >check.py <<'PY'
import torch
from torch.utils._python_dispatch import TorchDispatchMode

USES = 10


class Casts(TorchDispatchMode):
    """How often a weight is cast."""

    def __init__(self, weight):
        super().__init__()
        self.weight, self.count = weight.data_ptr(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default:
            self.count += args[0].data_ptr() == self.weight
        return func(*args, **(kwargs or {}))


def casts(trained, grad):
    layer = torch.nn.Linear(64, 64, bias=False).requires_grad_(trained)
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16), Casts(layer.weight) as seen:
        for _ in range(USES):
            layer(torch.ones(1, 64))
    return seen.count


print("torch", torch.__version__)
for trained in (True, False):
    for grad in (True, False):
        count = casts(trained, grad)
        kind = "trained" if trained else "frozen"
        print(f"{kind} weight, gradients {'on' if grad else 'off'}: cast {count} times in {USES} uses")
        assert count == (1 if trained else USES)
PY
environment/bin/python -W ignore check.py
echo "as described: autocast keeps casts of trained weights alone"
