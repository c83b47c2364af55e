#!/usr/bin/env bash
# optuna 5.0.0: HyperbandPruner chooses a trial's bracket, and with it when the trial may be stopped, by a hash of the
# study's name and the trial's number. A study without a name gets a random one. So with a seeded sampler and an objective
# without chance the same search stops other trials each time it is run, and a renamed study is another search. One would
# have sworn that the sampler's seed is the only source of chance. With MedianPruner it is.
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


def search(name, make_pruner):
    """The points and how far each of 40 trials went."""
    study = optuna.create_study(study_name=name, sampler=optuna.samplers.RandomSampler(seed=0), pruner=make_pruner())

    def loss(trial):
        x = trial.suggest_float("x", 0, 1)
        for step in range(1, 10):
            trial.report(x + (1 - x) / step, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return x

    study.optimize(loss, n_trials=40)
    return tuple(trial.params["x"] for trial in study.trials), tuple(trial.last_step for trial in study.trials)


def hyperband():
    return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=9)


print("optuna", optuna.__version__)
outcomes = {}
for pruner in (hyperband, optuna.pruners.MedianPruner):
    for name in ("first", "second", None, None, None, None):
        points, steps = search(name, pruner)
        outcomes.setdefault(pruner.__name__, []).append((points, steps))
        print(f"{pruner.__name__}, study {name}: {sum(steps)} steps,", "".join(map(str, steps)))
points = {points for found in outcomes.values() for points, _ in found}
assert len(points) == 1, "the sampler is seeded"
assert len({steps for _, steps in outcomes["hyperband"]}) > 1
assert len({steps for _, steps in outcomes["MedianPruner"]}) == 1
PY
environment/bin/python -W ignore check.py
echo "as described: Hyperband stops other trials in a study of another name"
