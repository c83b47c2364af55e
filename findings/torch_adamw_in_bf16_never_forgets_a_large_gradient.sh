#!/usr/bin/env bash
# torch 2.13.0: AdamW keeps its moments in the dtype of the weights. In bfloat16, whose numbers lie 1/128 to 1/256 of themselves
# apart, the second moment times beta2=0.999 rounds back to itself: it can grow, and never falls. After one gradient that is a
# hundred times the usual, a spike of the first steps, the steps of that weight are divided by 3 for the rest of training, where
# fp32 has forgotten it after a few thousand; fused, foreach and the plain loop are alike. That is the default beta2, and
# transformers 5 loads a checkpoint in the dtype that it was saved in. Better known is that small steps round to nothing in the
# weight; this is another loss, and rounding the weights with more care doesn't mend it. One would have sworn that a moving
# average over some 1,000 steps forgets. With beta2=0.99 it does, roughly.
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

torch.set_num_threads(1)
USUAL, SPIKE, STEPS = 0.01, 1.0, 10_000
WAYS = {"plain loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


def second_moments(dtype, beta2=0.999, **way):
    """Of a weight whose first gradient is a spike and all others are alike: after the spike, and at the end."""
    weight = torch.nn.Parameter(torch.ones(8, dtype=dtype))
    optimizer = torch.optim.AdamW([weight], lr=1e-6, betas=(0.9, beta2), weight_decay=0.0, **way)
    moments = []
    for step in range(STEPS):
        weight.grad = torch.full_like(weight, USUAL if step else SPIKE)
        optimizer.step()
        moments.append(float(optimizer.state[weight]["exp_avg_sq"][0]))
    return moments[0], moments[-1]


print("torch", torch.__version__)
print(f"a gradient of {SPIKE}, then {STEPS - 1} of {USUAL}, whose square is {USUAL**2:g}")
for name, way in WAYS.items():
    for dtype in (torch.float32, torch.bfloat16):
        first, last = second_moments(dtype, **way)
        smaller = (last / USUAL**2) ** 0.5
        print(f"{name}, {dtype}: exp_avg_sq {first:.2e}, at the end {last:.2e}: steps divided by {smaller:.2f}")
        assert abs(first - 1e-3) < 1e-5
        assert (last == first and smaller > 3) if dtype == torch.bfloat16 else abs(smaller - 1) < 0.01
first, last = second_moments(torch.bfloat16, beta2=0.99, foreach=True)
print(f"beta2=0.99 in bfloat16: {first:.2e}, at the end {last:.2e}")
assert last < first / 20
PY
environment/bin/python -W ignore check.py
echo "as described: in bfloat16 the second moment of AdamW grows and never falls"
