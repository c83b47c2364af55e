#!/usr/bin/env bash
# torchmetrics 1.9.0: a binary metric that is given logits takes the sigmoid of a batch only if some value in it lies outside
# [0, 1]; a batch whose logits all happen to lie within is taken for probabilities, and 0.3, a logit for the positive class,
# counts as negative. So accuracy, F1, calibration and even the area under the curve depend on the batch size and on which
# rows stand together: here every answer is right, and the accuracy is 1 by batches of 8 and 0.5 by batches of one. One would
# have sworn that a metric of a data set is the same however it is cut, as update() and compute() promise.
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
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC, BinaryF1Score

LOGITS = torch.tensor([3.0, -2.0, 0.3, 0.4, -1.0, 0.2, 0.9, 0.1])
LABELS = (LOGITS > 0).long()  # each is classified rightly


def measured(metric, batch_size, scores):
    for part in range(0, len(scores), batch_size):
        metric.update(scores[part : part + batch_size], LABELS[part : part + batch_size])
    return round(float(metric.compute()), 3)


print("torch", torch.__version__, "torchmetrics", torchmetrics.__version__)
for kind in (BinaryAccuracy, BinaryF1Score, BinaryAUROC):
    of_logits = [measured(kind(), size, LOGITS) for size in (8, 2, 1)]
    of_probabilities = [measured(kind(), size, LOGITS.sigmoid()) for size in (8, 2, 1)]
    print(f"{kind.__name__} by batches of 8, 2, 1: of logits {of_logits}, of probabilities {of_probabilities}")
    assert of_probabilities == [1.0, 1.0, 1.0]
    assert of_logits[0] == 1.0 > of_logits[1] > of_logits[2]
PY
environment/bin/python -W ignore check.py
echo "as described: metrics of logits depend on the batches they come in"
