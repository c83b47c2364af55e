#!/usr/bin/env bash
# torch 2.13.0: to begin to iterate over a DataLoader takes a number from the global generator, without shuffling and without
# workers. So an evaluation on rows in their order, of a model without dropout, changes the training that follows it: its
# shuffles and dropout are others, and two runs that differ in how often they evaluate are two draws of the seed. One would
# have sworn that evaluation leaves training alone. With a generator of its own, DataLoader(generator=...), it does.
#
# Nothing is downloaded but the packages. Exits with 0 while that is so. Needs Python 3.10 or newer and a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/pip install --quiet --no-compile "torch==2.13.0"
cat >check.py <<'PY'
import torch
from torch.utils.data import DataLoader

ROWS = torch.arange(8)


def orders(evaluate):
    """The rows' order in three epochs of training, with or without an evaluation after each."""
    torch.manual_seed(0)
    training = DataLoader(ROWS, batch_size=4, shuffle=True)
    seen = []
    for _ in range(3):
        seen.append(torch.cat(list(training)).tolist())
        evaluate()
    return seen


def nothing():
    pass


def in_order():
    assert torch.equal(torch.cat(list(DataLoader(ROWS, batch_size=4))), ROWS)


def in_order_with_a_generator():
    list(DataLoader(ROWS, batch_size=4, generator=torch.Generator()))


print("torch", torch.__version__)
alone, evaluated, apart = orders(nothing), orders(in_order), orders(in_order_with_a_generator)
print("no evaluation:", alone)
print("evaluation:   ", evaluated)
assert alone[0] == evaluated[0]
assert alone[1] != evaluated[1] and alone[2] != evaluated[2]
assert alone == apart
PY
environment/bin/python -W ignore check.py
echo "as described: an evaluation in order changes the order of training after it"
