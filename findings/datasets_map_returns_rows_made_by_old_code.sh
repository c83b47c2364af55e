#!/usr/bin/env bash
# datasets 5.2.0: Dataset.map on rows of a file stores what it made under a hash of the function. A function that is imported
# from a module is hashed by its name alone, also where a lambda calls it. So after an edit of that module, in a new process,
# map returns the rows that the old code made, and says nothing. The same edit to a function that is written in the script
# itself is seen. One would have sworn that the hash covers the code that runs, wherever it is written.
#
# Nothing is downloaded but the packages. Exits with 0 while that is so. Needs Python 3.10 or newer and a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/pip install --quiet --no-compile "datasets==5.2.0"
cat >check.py <<'PY'
import json
import sys

import datasets
from preparing import prepare

datasets.disable_progress_bars()
rows = datasets.load_dataset("json", data_files="rows.jsonl", cache_dir="cache")["train"]
made = {
    "imported": rows.map(prepare)["text"][0],
    "a lambda that calls it": rows.map(lambda row: {"text": prepare(row)["text"]})["text"][0],
    "not stored": rows.map(prepare, load_from_cache_file=False, cache_file_name=f"./fresh-{sys.argv[1]}.arrow")["text"][0],
}
print("datasets", datasets.__version__)
print(f"preparing.py as {sys.argv[1]}:", made)
json.dump(made, open(f"{sys.argv[1]}.json", "w"))
PY
echo '{"text": "2 + 2"}' >rows.jsonl
module() { # PREFIX
    printf 'def prepare(row):\n    return {"text": "%s" + row["text"]}\n' "$1" >preparing.py
    rm -rf __pycache__
}
export HF_HOME=$PWD/home HF_HUB_OFFLINE=1
module "Q: "
environment/bin/python -W ignore check.py first
module "Question: "
environment/bin/python -W ignore check.py edited
environment/bin/python - <<'PY'
import json

first, edited = (json.load(open(f"{name}.json")) for name in ("first", "edited"))
assert set(first.values()) == {"Q: 2 + 2"}
assert edited == {**first, "not stored": "Question: 2 + 2"}
PY
echo "as described: map returns rows that the module made before it was edited"
