#!/usr/bin/env bash
# torch 2.13.0: cross_entropy(weight=…) of class indices is a weighted mean, divided by the sum of the labels' weights; of
# the same labels as one-hot probabilities the weighted sum is divided by the number of rows. So the step from labels to
# soft targets changes the loss by the mean weight of the labels, and weights that are all 2 change nothing of the one and
# double the other. With label_smoothing= indices are divided by the labels' weights alone, although each class's share of
# the smoothing has its own weight: a weight of a class that no row has changes the loss, and not what it is divided by.
# One would have sworn that a one-hot row and its index are the same target.
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
from torch.nn.functional import cross_entropy, one_hot

torch.manual_seed(0)
logits, labels = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 0])  # no row is of class 3
hot = one_hot(labels, 4).double()
weight = torch.tensor([1.0, 2.0, 0.5, 4.0], dtype=torch.float64)
twice = torch.full((4,), 2.0, dtype=torch.float64)


def both(weight):
    return [cross_entropy(logits, target, weight=weight).item() for target in (labels, hot)]


def smoothed(weight, reduction="mean"):
    return cross_entropy(logits, labels, weight=weight, label_smoothing=0.1, reduction=reduction)


print("torch", torch.__version__)
print("                     indices  one-hot")
for name, given in (("no weight", None), ("all weights 2", twice), ("1, 2, 0.5, 4", weight)):
    print(f"{name:20} {'  '.join(f'{value:.4f}' for value in both(given))}")
of_labels = weight[labels]
divisor = (smoothed(weight, "sum") / smoothed(weight)).item()
absent = weight.clone()
absent[3] = 100.0
print(f"label_smoothing=0.1 divides by {divisor:.4f}: the labels' weights add up to {of_labels.sum():.4f}")
print(f"a weight of 100 for the class without rows: {smoothed(weight):.4f} becomes {smoothed(absent):.4f}")
indices, rows = both(weight)
assert abs(both(None)[0] - both(None)[1]) < 1e-12
assert abs(both(twice)[0] - both(None)[0]) < 1e-12
assert abs(both(twice)[1] - 2 * both(None)[1]) < 1e-12
assert abs(rows / indices - of_labels.mean().item()) < 1e-12
assert abs(divisor - of_labels.sum().item()) < 1e-12
assert (smoothed(absent) / smoothed(weight)).item() > 2
PY
environment/bin/python -W ignore check.py
echo "as described: a one-hot row and its index have other divisors"
