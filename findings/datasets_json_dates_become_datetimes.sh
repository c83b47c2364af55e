#!/usr/bin/env bash
# datasets 5.2.0: a column of strings of a JSON file that all look like dates ("2024-03-01", "2024-03-01 12:00:00") is read
# as datetime objects, though JSON has no dates and each value stands in quotes. In a chat template or an f-string the answer
# "2024-03-01" is then "2024-03-01 00:00:00", which is what a model is taught and judged by. One row that is no date makes
# all of them strings again, so the same row is read differently by what else the file holds. The same rows
# through Dataset.from_list are strings. One would have sworn that a JSON string is a string.
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

import datasets
from datasets import Dataset, load_dataset

datasets.disable_progress_bars()
DATES = [{"question": "Which day is it?", "answer": "2024-03-01"}, {"question": "And then?", "answer": "2024-03-02"}]
OTHER = {"question": "And who are you?", "answer": "a model"}


def read(name, rows):
    with open(name, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    loaded = load_dataset("json", data_files=name, cache_dir="cache")["train"]
    text = f"{loaded[0]['answer']}"
    print(f"{name}: {loaded.features['answer']}, first answer {text!r}")
    return text


print("datasets", datasets.__version__)
assert read("dates.jsonl", DATES) == "2024-03-01 00:00:00"
assert read("dates_and_another.jsonl", [*DATES, OTHER]) == "2024-03-01"
listed = Dataset.from_list(DATES)
print(f"Dataset.from_list: {listed.features['answer']}, first answer {listed[0]['answer']!r}")
assert listed[0]["answer"] == "2024-03-01"
PY
export HF_HOME=$PWD/home HF_HUB_OFFLINE=1
environment/bin/python -W ignore check.py
echo "as described: JSON strings that look like dates are read as datetimes"
