#!/usr/bin/env bash
# optuna 5.0.0: GridSampler counts a point whose trial failed as visited. Once the fault is mended, optimize() on the same
# study, with as many trials as it takes, doesn't run that point: it runs one that is complete a second time, and stops. So
# the best of the grid is the best of what didn't fail, and no error says so. One would have sworn that a grid goes on until
# each of its points has a value, and that it repeats none.
#
# Nothing is downloaded but the packages. Exits with 0 while that is so. Needs Python 3.10 or newer and a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/pip install --quiet --no-compile "optuna==5.0.0"
cat >check.py <<'PY'
import optuna

optuna.logging.set_verbosity(optuna.logging.ERROR)
SPACE = {"width": [1, 2, 3, 4]}
BEST = 2


def study():
    return optuna.create_study(
        storage="sqlite:///grid.db", study_name="grid", sampler=optuna.samplers.GridSampler(SPACE, seed=0), load_if_exists=True
    )


def loss(trial):
    return abs(trial.suggest_categorical("width", SPACE["width"]) - BEST)


def loss_short_of_memory(trial):
    value = loss(trial)
    if trial.params["width"] == BEST:
        raise MemoryError("not enough memory")
    return value


def trials():
    return [(trial.params["width"], trial.state.name) for trial in study().trials]


print("optuna", optuna.__version__)
study().optimize(loss_short_of_memory, catch=(MemoryError,))
first = trials()
print("first:", first)
study().optimize(loss)
then = trials()[len(first) :]
print("mended, then optimize():", then, "best:", study().best_params)
assert sorted(first) == [(1, "COMPLETE"), (2, "FAIL"), (3, "COMPLETE"), (4, "COMPLETE")]
assert len(then) == 1 and then[0] in first and then[0][0] != BEST
assert study().best_params["width"] != BEST
PY
environment/bin/python -W ignore check.py
echo "as described: the grid ran a complete point again, and never the one that failed"
