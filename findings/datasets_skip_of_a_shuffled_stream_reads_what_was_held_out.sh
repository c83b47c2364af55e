#!/usr/bin/env bash
# datasets 5.2.0: a stream that is shuffled and then split by take(100) and skip(100) is shuffled anew by set_epoch, and the
# split is made anew with it. Trainers call set_epoch on what they train on (accelerate's loaders do), and never on what they
# evaluate. From the second epoch on training skips another hundred rows, and reads nine in ten of those that are held out.
# The documentation of the library says to shuffle before splitting. One would have sworn that take and skip are two parts
# of the data; in the first epoch they are. Splitting first, and shuffling the rest, keeps them apart.
#
# Nothing is downloaded but the packages. Exits with 0 while that is so. Needs Python 3.10 or newer and a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/pip install --quiet --no-compile "torch==2.13.0" "datasets==5.2.0" "accelerate==1.15.0"
cat >check.py <<'PY'
import accelerate
import datasets
from accelerate import Accelerator
from datasets import Dataset
from torch.utils.data import DataLoader

ROWS, HELD_OUT, EPOCHS = 1000, 100, 3


def stream():
    return Dataset.from_dict({"row": list(range(ROWS))}).to_iterable_dataset()


def shuffled_then_split():
    rows = stream().shuffle(seed=0, buffer_size=ROWS)
    return rows.take(HELD_OUT), rows.skip(HELD_OUT)


def split_then_shuffled():
    return stream().take(HELD_OUT), stream().skip(HELD_OUT).shuffle(seed=0, buffer_size=ROWS)


def leaked(split):
    """Of the rows that are held out, how many each epoch of training reads."""
    held, train = split()
    judged = {row["row"] for row in held}
    loader = Accelerator(cpu=True).prepare(DataLoader(train, batch_size=10))
    counts = []
    for epoch in range(EPOCHS):
        loader.set_epoch(epoch)
        read = {int(row) for batch in loader for row in batch["row"]}
        assert len(read) == ROWS - HELD_OUT
        assert judged == {row["row"] for row in held}
        counts.append(len(read & judged))
    return counts


print("datasets", datasets.__version__, "accelerate", accelerate.__version__)
late, early = leaked(split_then_shuffled), leaked(shuffled_then_split)
print(f"of {HELD_OUT} rows that are held out, epochs 1, 2, 3 of training read")
print("    split, then shuffled:", late)
print("    shuffled, then split:", early)
assert late == [0, 0, 0]
assert early[0] == 0
assert min(early[1:]) > 70
PY
export HF_HOME=$PWD/home HF_HUB_OFFLINE=1
environment/bin/python -W ignore check.py
echo "as described: a stream that was shuffled before it was split trains on its held-out rows from the second epoch on"
