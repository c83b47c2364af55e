#!/usr/bin/env bash
# make test-matrix: the tests under other versions than CI's, each cell in an environment of its own below .matrix.
#
#   tests/matrix.sh                            every cell
#   tests/matrix.sh hydra-1.4 python-3.13      these
#   TESTS="tests/run/test_cli.py" tests/matrix.sh  other tests than the fast ones
#
# A cell whose Python isn't installed is named and left out. The exit code is 1 where tests of a cell fail.
set -uo pipefail
cd "$(dirname "$0")/.."

CELLS=(hydra-1.4 torch-newest transformers-newest python-3.12 python-3.13)
FAST="not slow and not browser and not slurm and not pretrained"

# The interpreter of a cell, the packages that it takes from elsewhere than constraints.txt, and what pip is given for them.
interpreter() { case $1 in python-*) echo "python${1#python-}" ;; *) echo "${PYTHON:-python3.11}" ;; esac; }
varied() {
    case $1 in
        hydra-1.4) echo "hydra-core omegaconf" ;;
        torch-newest) echo "torch triton" ;;
        transformers-newest) echo "transformers huggingface_hub tokenizers" ;;
    esac
}
requested() {
    case $1 in
        hydra-1.4) echo "--pre hydra-core>=1.4.0rc3,<1.5" ;;
        torch-newest) echo "--upgrade torch" ;;
        transformers-newest) echo "--upgrade transformers>=5,<6" ;;
    esac
}

make_environment() { # CELL FOLDER PYTHON
    local pattern constraints
    pattern=$(varied "$1" | sed 's/ /|/g')
    constraints=$2/constraints.txt
    "$3" -m venv "$2" || return 1
    grep -vE "^(nvidia-.*|${pattern:-none})==" constraints.txt >"$constraints"
    # first what varies, so that the rest is resolved around it; torch is the build that CI has but where it varies
    [ "$1" = torch-newest ] || "$2/bin/pip" install --quiet -c "$constraints" torch==2.13.0 || return 1
    # shellcheck disable=SC2046  # several words
    [ -z "$(requested "$1")" ] || "$2/bin/pip" install --quiet -c "$constraints" $(requested "$1") || return 1
    "$2/bin/pip" install --quiet -c "$constraints" --editable ".[dev]" || return 1
    touch "$2/.ready"
}

run_cell() { # CELL
    local python folder=.matrix/$1
    python=$(interpreter "$1")
    "$python" -c '' 2>/dev/null || { echo "$1: left out, there is no $python"; return 0; }
    [ -e "$folder/.ready" ] || make_environment "$1" "$folder" "$python" || { echo "$1: can't be installed"; return 1; }
    echo "== $1: $("$folder/bin/python" -c 'import sys, hydra, torch, transformers as t; print("Python", sys.version.split()[0], "hydra", hydra.__version__, "torch", torch.__version__, "transformers", t.__version__)')"
    # shellcheck disable=SC2086  # several files
    OMP_NUM_THREADS=1 "$folder/bin/python" -m pytest -q -n "${WORKERS:-2}" -m "$FAST" ${TESTS:-}
}

failed=()
for cell in "${@:-${CELLS[@]}}"; do
    run_cell "$cell" || failed+=("$cell")
done
[ ${#failed[@]} = 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
