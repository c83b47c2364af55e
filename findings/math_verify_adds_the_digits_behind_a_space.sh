#!/usr/bin/env bash
# math-verify 0.9.0: a space that groups thousands, 10 500 or 10\,500 as the SI and much of Europe write it, is read as an
# operator, and not always as the same: \boxed{10 500} is 10 + 500 = 510, \boxed{5 000} is 5 * 0 = 0, and in a sentence
# without a formula both are ten thousand five hundred and five thousand. So the right answer counts as wrong, and, where
# the reference is written that way, 510 and 0 count as right. \,, which LaTeX has for this very purpose, is no better. One
# would have sworn that 10\,500 is 10500, as 10,500 and 10{,}500 are, or else that it isn't read at all.
#
# Nothing is downloaded but the packages. Exits with 0 while that is so. Needs Python 3.10 or newer and a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/pip install --quiet --no-compile "math-verify[antlr4_9_3]==0.9.0"
cat >check.py <<'PY'
from importlib.metadata import version

from math_verify import parse, verify


def boxed(text):
    return parse(r"\boxed{" + text + "}")


def right(answer, reference):
    return verify(boxed(reference), boxed(answer))


print("math-verify", version("math-verify"), "sympy", version("sympy"))
for written in ("10,500", "10{,}500", "10 500", r"10\,500", r"10\ 500", "5 000", r"5\,000"):
    print(f"{written:10} is read as", boxed(written))
sentence = parse("They sold 10 500 tickets.")
print("They sold 10 500 tickets.:", sentence)

for written in ("10,500", "10{,}500"):
    assert right(written, "10500") and not right(written, "510")
for written in ("10 500", r"10\,500", r"10\ 500"):
    assert not right(written, "10500")
    assert right(written, "510") and right("510", written)
for written in ("5 000", r"5\,000"):
    assert not right(written, "5000")
    assert right("0", written)
assert sentence[0] == 10500
PY
environment/bin/python -W ignore check.py
echo "as described: 10 500 is 510 and 5 000 is 0, as answers and as references"
