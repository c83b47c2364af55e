#!/usr/bin/env bash
# hydra-core 1.3.8 (omegaconf 2.3.1): a multirun composes all of its jobs before the first one starts, to refuse what can't be
# composed. That is thrown away: each job is composed again when its turn comes, from the yaml files as they are then. A file
# that is edited while the first job runs changes the others. Nothing is said, and the jobs of one multirun, which should differ
# in the seed alone, have two learning rates. One would have sworn that what was checked is what is run.
#
# Nothing is downloaded but the packages. Exits with 0 while that is so. Needs Python 3.10 or newer and a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/pip install --quiet --no-compile "hydra-core==1.3.8" "omegaconf==2.3.1"
printf 'lr: 0.001\nseed: 0\n' >config.yaml
cat >app.py <<'PY'
from pathlib import Path

import hydra

HERE = Path(__file__).parent


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def train(config):
    print(f"seed {config.seed}: lr {config.lr}", flush=True)
    # what a user does in an editor, while the first job trains
    (HERE / "config.yaml").write_text("lr: 0.005\nseed: 0\n")


train()
PY
environment/bin/python -c 'import hydra, omegaconf; print("hydra", hydra.__version__, "omegaconf", omegaconf.__version__)'
environment/bin/python app.py --multirun seed=0,1,2 | grep "^seed" | tee jobs.txt
diff jobs.txt - <<'TXT'
seed 0: lr 0.001
seed 1: lr 0.005
seed 2: lr 0.005
TXT
echo "as described: an edit during a multirun changes the jobs that are left"
