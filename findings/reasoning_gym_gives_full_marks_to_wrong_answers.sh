#!/usr/bin/env bash
# reasoning-gym 0.1.25: three scorers give 1.0 to answers that are wrong. game_of_life_halting compares bool(answer) with
# bool("False"), both true, so any words are right, also where the answer is False and "True" was given. coin_flip compares
# the beginnings of two numbers over the length of the shorter: "0" is right for 0.3125, in nearly every problem. puzzle24
# asks for four numbers of the puzzle's range that make 24, not for those of the puzzle. A reward or an accuracy from them is
# of what a model learns to exploit. One would have sworn that score_answer is 1.0 for answers that solve the problem.
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

WRONG = {"game_of_life_halting": "I can't tell.", "coin_flip": "0", "puzzle24": "1*2*3*4"}
SIZE = 50


def full_marks(task, answer):
    """Share of problems in which a wrong answer scores 1.0. The answer is right in none of them."""
    data = reasoning_gym.create_dataset(task, size=SIZE, seed=1)
    problems = [problem for problem in data if not right(task, answer, problem)]
    return sum(data.score_answer(answer, problem) == 1.0 for problem in problems) / len(problems)


def right(task, answer, problem):
    if task == "puzzle24":
        return sorted(problem["metadata"]["numbers"]) == [1, 2, 3, 4]
    if task == "coin_flip":
        return abs(float(problem["answer"])) < 1e-3  # as good as 0
    return False


print("reasoning-gym", version("reasoning-gym"))
for task, answer in WRONG.items():
    share = full_marks(task, answer)
    print(f"{task}: {answer!r}, which is wrong, scores 1.0 in {share:.0%} of {SIZE} problems")
    assert share > 0.8, task
PY
environment/bin/python -W ignore check.py
echo "as described: wrong answers get full marks in three tasks"
