#!/usr/bin/env bash
# reasoning-gym 0.1.25: problem i of seed s is drawn from s + i, so problem i of seed 1 is problem i + 1 of seed 0. A model
# trained on 1,000 problems of seed 0 and tested on 200 of seed 1 has seen them all; runs over seeds 0, 1 and 2 differ in
# two problems of each set. One would have sworn that another seed makes other problems.
#
# Nothing is downloaded but the packages. Exits with 0 while that is so. Needs Python 3.10 or newer and a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/pip install --quiet --no-compile "reasoning-gym==0.1.25"
cat >check.py <<'PY'
from importlib.metadata import version

import reasoning_gym

TASKS = ("chain_sum", "gcd", "letter_counting", "word_sorting")
TRAIN, TEST = 1000, 200

print("reasoning-gym", version("reasoning-gym"))
for task in TASKS:
    train = [problem["question"] for problem in reasoning_gym.create_dataset(task, size=TRAIN, seed=0)]
    test = [problem["question"] for problem in reasoning_gym.create_dataset(task, size=TEST, seed=1)]
    seen = sum(question in set(train) for question in test)
    print(f"{task}: {seen} of {TEST} problems of seed 1 are among the first {TRAIN} of seed 0")
    assert test == train[1 : TEST + 1], task
PY
environment/bin/python -W ignore check.py
echo "as described: neighbouring seeds have the same problems, one place on"
