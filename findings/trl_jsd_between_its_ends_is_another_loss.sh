#!/usr/bin/env bash
# trl 1.16.0: GKDTrainer's beta is said to interpolate between the KL divergence (0) and the reverse one (1). The loss jumps
# at both ends: for beta between 0 and 1 it is beta*KL(teacher|mixture) + (1-beta)*KL(student|mixture), which goes to zero
# towards either end, while exactly 0 and 1 are the two KLs themselves. So beta=0.01 has about a hundredth of the gradient
# of beta=0, and a sweep of beta at one learning rate compares step sizes. One would have sworn that beta=0.01 is nearly
# beta=0; the divergence over beta*(1-beta) would be. AdamW hides it, SGD, clipping and weighted sums of losses do not.
#
# Nothing is downloaded but the packages. Exits with 0 while that is so. Needs Python 3.10 or newer and a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/pip install --quiet --no-compile "torch==2.13.0" "transformers==5.24.0" "trl==1.16.0"
cat >check.py <<'PY'
import torch
import transformers
import trl
from trl.experimental.gkd import GKDTrainer

torch.manual_seed(0)
student, teacher = torch.randn(1, 8, 20), torch.randn(1, 8, 20)


def loss_and_gradient(beta):
    logits = student.clone().requires_grad_()
    loss = GKDTrainer.generalized_jsd_loss(logits, teacher, beta=beta)
    loss.backward()
    return float(loss.detach()), float(logits.grad.norm())


print("torch", torch.__version__, "transformers", transformers.__version__, "trl", trl.__version__)
values = {beta: loss_and_gradient(beta) for beta in (0.0, 0.001, 0.01, 0.5, 0.99, 0.999, 1.0)}
for beta, (loss, gradient) in values.items():
    scaled = f", over beta*(1-beta) {loss / (beta * (1 - beta)):.3f}" if 0 < beta < 1 else ""
    print(f"beta={beta}: loss {loss:.5f}, norm of its gradient {gradient:.5f}{scaled}")
for end, near in ((0.0, 0.01), (1.0, 0.99)):
    assert 80 < values[end][0] / values[near][0] < 130
    assert 80 < values[end][1] / values[near][1] < 130
    assert abs(values[near][0] / 0.0099 / values[end][0] - 1) < 0.1
PY
environment/bin/python -W ignore check.py
echo "as described: the loss at beta=0 and 1 is about a hundred times that at 0.01 and 0.99"
