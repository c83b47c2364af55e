#!/usr/bin/env bash
# torchmetrics 1.9.0: a MetricCollection compares the states of its metrics after the first update, and those whose states are
# equal share one from then on, whatever their arguments are. Two accuracies with thresholds 0.5 and 0.9, or with and without
# ignore_index, agree on many a first batch, and are one metric ever after: the second is not computed at all. On the same
# rows in another order both are right. One would have sworn that a collection returns what its metrics return alone.
# compute_groups=False makes it do so.
#
# Nothing is downloaded but the packages. Exits with 0 while that is so. Needs Python 3.10 or newer and a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/pip install --quiet --no-compile "torch==2.13.0" "torchmetrics==1.9.0"
cat >check.py <<'PY'
import torch
import torchmetrics
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy

YES = torch.ones(4, dtype=torch.long)
SURE, UNSURE = torch.tensor([0.95, 0.99, 0.92, 0.97]), torch.tensor([0.6, 0.7, 0.8, 0.95])
BY_THRESHOLD = ({"lenient": {"threshold": 0.5}, "strict": {"threshold": 0.9}}, BinaryAccuracy)
SCORED = [(SURE, YES), (UNSURE, YES)]

OTHER = 0  # the class that is no answer
BY_CLASS = ({"every": {}, "answers": {"ignore_index": OTHER}}, lambda **how: MulticlassAccuracy(5, average="micro", **how))
CLASSIFIED = [
    (torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 4])),
    (torch.tensor([OTHER, OTHER, OTHER, 3]), torch.tensor([OTHER, OTHER, OTHER, 1])),
]


def alone(kinds, batches):
    settings, kind = kinds
    values = {}
    for name, how in settings.items():
        metric = kind(**how)
        for batch in batches:
            metric.update(*batch)
        values[name] = round(float(metric.compute()), 3)
    return values


def together(kinds, batches, **options):
    settings, kind = kinds
    metrics = MetricCollection({name: kind(**how) for name, how in settings.items()}, **options)
    for batch in batches:
        metrics.update(*batch)
    return {name: round(float(value), 3) for name, value in metrics.compute().items()}


print("torch", torch.__version__, "torchmetrics", torchmetrics.__version__)
for kinds, batches in ((BY_THRESHOLD, SCORED), (BY_CLASS, CLASSIFIED)):
    expected, collected = alone(kinds, batches), together(kinds, batches)
    print("alone:", expected, "in a collection:", collected, "of the same batches in turn:", together(kinds, batches[::-1]))
    first, second = expected
    assert expected[first] != expected[second]
    assert collected[first] == collected[second]
    assert together(kinds, batches[::-1]) == together(kinds, batches, compute_groups=False) == expected
PY
environment/bin/python -W ignore check.py
echo "as described: metrics that agree on the first batch are one metric for the rest"
