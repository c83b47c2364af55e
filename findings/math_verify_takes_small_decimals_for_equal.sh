#!/usr/bin/env bash
# math-verify 0.9.0: two decimals that differ are compared to six places after the point, not to six digits. So any two below
# about 5e-7 are equal, 0.0000001 and 0.0000003 as well, while the same values as powers of ten are not. And 1.0e-7 is read
# as -7 + 1.0*e, with Euler's number: it is no match for 10^{-7} or 0.0000001, nor 2.5e3 for 2500. So answers in physics and
# chemistry are rewarded for any small number, and marked wrong in a computer's notation. One would have sworn that
# float_rounding is of digits that count, and that 1.0e-7 is a number.
#
# Nothing is downloaded but the packages. Exits with 0 while that is so. Needs Python 3.10 or newer and a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/pip install --quiet --no-compile "math-verify[antlr4_13_2]==0.9.0"
cat >check.py <<'PY'
from importlib.metadata import version

from math_verify import parse, verify


def equal(gold, answer):
    return verify(parse(f"${gold}$"), parse(f"${answer}$"))


PAIRS = {
    ("0.0000001", "0.0000003"): True,
    ("0.00000016", "0.00000041"): True,
    ("10^{-7}", "3 \\cdot 10^{-7}"): False,
    ("0.1", "0.3"): False,
    ("1.0e-7", "0.0000001"): False,
    ("2.5e3", "2500"): False,
    ("2.5 \\cdot 10^3", "2500"): True,
}
print("math-verify", version("math-verify"))
for (gold, answer), expected in PAIRS.items():
    verdict = equal(gold, answer)
    print(f"{gold} and {answer}: {'equal' if verdict else 'not equal'}; read as {parse(f'${gold}$')[0]}, {parse(f'${answer}$')[0]}")
    assert verdict == expected, (gold, answer)
PY
environment/bin/python -W ignore check.py
echo "as described: small decimals are equal, and 1.0e-7 is a sum with Euler's number"
