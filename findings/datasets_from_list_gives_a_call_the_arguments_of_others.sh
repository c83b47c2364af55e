#!/usr/bin/env bash
# datasets 5.2.0: Dataset.from_list makes one struct of all dictionaries at a place, so a tool call gets the arguments of
# every other call in the data, as None, and a message the keys of the others. A chat template that prints a call as JSON
# then teaches {"city": "Bern", "a": null, "b": null}. load_dataset("json") of the same rows, in the same version, returns
# them as they are written, since it keeps what differs as Json. One would have sworn that both hold the rows they were given.
#
# Nothing is downloaded but the packages. Exits with 0 while that is so. Needs Python 3.10 or newer and a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/pip install --quiet --no-compile "datasets==5.2.0" "jinja2==3.1.6"
cat >check.py <<'PY'
import json

import datasets
import jinja2
from datasets import Dataset, load_dataset

datasets.disable_progress_bars()


def call(name, **arguments):
    return {"messages": [{"role": "assistant", "tool_calls": [{"name": name, "arguments": arguments}]}]}


ROWS = [call("weather", city="Bern"), call("add", a=1, b=2)]
TEMPLATE = jinja2.Environment().from_string("{{ messages[0].tool_calls[0].arguments | tojson }}")


def shown(row):
    return json.loads(TEMPLATE.render(row))


with open("rows.jsonl", "w") as file:
    file.writelines(json.dumps(row) + "\n" for row in ROWS)
listed = [shown(row) for row in Dataset.from_list(ROWS)]
loaded = [shown(row) for row in load_dataset("json", data_files="rows.jsonl", cache_dir="cache")["train"]]
print("datasets", datasets.__version__)
print("written:           ", [shown(row) for row in ROWS])
print("Dataset.from_list: ", listed)
print('load_dataset("json"):', loaded)
assert listed == [{"city": "Bern", "a": None, "b": None}, {"city": None, "a": 1, "b": 2}]
assert loaded == [{"city": "Bern"}, {"a": 1, "b": 2}]
PY
export HF_HOME=$PWD/home HF_HUB_OFFLINE=1
environment/bin/python -W ignore check.py
echo "as described: Dataset.from_list gives every call the arguments of the others"
