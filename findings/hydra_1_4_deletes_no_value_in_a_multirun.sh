#!/usr/bin/env bash
# Hydra 1.4.0rc3 (omegaconf 2.4.1rc1): `~key` takes a value out of a configuration in a single run, and is refused in a
# multirun, where each job gets it as if it had been written `~key=null`. Hydra 1.3.8 takes it in both.
# `~key=VALUE`, with the value that is there, works in both versions and both ways.
#
# Exits with 0 while that is so. Needs Python 3.10 or newer and a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
echo 'part: {size: 100000, seed: 0}' >config.yaml
cat >app.py <<'PY'
import hydra


@hydra.main(config_path=".", config_name="config", **({"version_base": "1.3"} if hydra.__version__ < "1.4" else {}))
def main(config):
    print("job:", config)


main()
PY

install() { # FOLDER VERSION
    python3 -m venv "$1"
    "$1/bin/pip" install --quiet --pre "hydra-core==$2" "$3"
    "$1/bin/python" -c 'import hydra, omegaconf; print("hydra", hydra.__version__, "omegaconf", omegaconf.__version__)'
}

outcome() { # ENVIRONMENT ARGUMENTS…
    local python=$1/bin/python code=0
    shift
    "$python" app.py "$@" hydra.output_subdir=null >output.txt 2>&1 || code=$?
    echo "  app.py $*: exit code $code" >&2
    sed -n 's/^\(job:.*\|Could not.*\)/    \1/p' output.txt >&2
    echo "$code"
}

install stable 1.3.8 "omegaconf==2.3.*"
test "$(outcome stable '~part.size')" = 0
test "$(outcome stable -m '~part.size' part.seed=1,2)" = 0
install next 1.4.0rc3 "omegaconf==2.4.1rc1"
test "$(outcome next '~part.size')" = 0
test "$(outcome next -m '~part.size' part.seed=1,2)" = 1
grep -q "The value of 'part.size' is 100000 and not None" output.txt
test "$(outcome next -m '~part.size=100000' part.seed=1,2)" = 0
echo "as described: a deletion without a value is refused in a multirun of Hydra 1.4.0rc3 alone"
