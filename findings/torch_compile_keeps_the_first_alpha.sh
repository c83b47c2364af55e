#!/usr/bin/env bash
# torch 2.13.0: a compiled function whose float argument changes from call to call, as a scheduled coefficient does, is
# recompiled with that argument as a number that may change. Where the same float is used in arithmetic and as alpha= of
# torch.add or Tensor.add_, the graph keeps the alpha of the call that it was compiled for, with no guard: later calls
# return the numbers of that earlier value, without an error or a warning. As alpha alone the float is guarded, and every
# value compiles a graph of its own. One would have sworn that (1 - e) * a + e * b and ((1 - e) * a).add_(b, alpha=e) are
# the same under torch.compile, as they are without.
#
# Nothing is downloaded but the packages. Exits with 0 while that is so. Needs Python 3.10 or newer, a C++ compiler and a
# package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/pip install --quiet --no-compile "torch==2.13.0" "numpy==2.4.0" setuptools
cat >check.py <<'PY'
import torch


def by_product(a, b, e):
    return (1 - e) * a + e * b


def by_alpha(a, b, e):
    return torch.add((1 - e) * a, b, alpha=e)


def in_place(a, b, e):
    return ((1 - e) * a).add_(b, alpha=e)


def alpha_alone(a, b, e):
    return torch.add(a, b, alpha=e)


print("torch", torch.__version__)
schedule = [0.2, 0.4, 0.6, 0.8]
a, b = torch.zeros(4), torch.ones(4)  # so that the result is the coefficient of b itself
seen = {}
for mixed in (by_product, by_alpha, in_place, alpha_alone):
    torch._dynamo.reset()
    compiled = torch.compile(mixed)
    seen[mixed.__name__] = [round(float(compiled(a, b, e)[0]), 6) for e in schedule]
    print(f"{mixed.__name__}: expected {schedule}, compiled {seen[mixed.__name__]}")
assert seen["by_product"] == seen["alpha_alone"] == schedule
assert seen["by_alpha"] == seen["in_place"] == [0.2, 0.4, 0.4, 0.4]
PY
environment/bin/python -W ignore check.py
echo "as described: the compiled sum goes on with an earlier coefficient"
