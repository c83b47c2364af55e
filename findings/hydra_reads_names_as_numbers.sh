#!/usr/bin/env bash
# hydra-core 1.3.8 (omegaconf 2.3.1): a value of the command line is read as a number where it can be one, before the field's
# type is looked at, and a field of type str gets that number printed. revision=1234e56, the first digits of a commit, is the
# string "1.234e+59"; 12e3456 is "inf"; name=2026_11_28 is "20261128". Nothing is said, and two names that differ can become
# one. One would have sworn that a field declared as str holds what was written; quotes within quotes are needed for that.
#
# Nothing is downloaded but the packages. Exits with 0 while that is so. Needs Python 3.10 or newer and a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/pip install --quiet --no-compile "hydra-core==1.3.8" "omegaconf==2.3.1"
cat >check.py <<'PY'
import sys
from dataclasses import dataclass

import hydra
import omegaconf
from hydra import compose, initialize
from hydra.core.config_store import ConfigStore


@dataclass
class Settings:
    name: str = "run"
    revision: str = "main"


ConfigStore.instance().store(name="settings", node=Settings)
WRITTEN = {
    "revision=1234e56": ("revision", "1.234e+59"),
    "revision=12e3456": ("revision", "inf"),
    "revision=12e4567": ("revision", "inf"),
    "name=2026_11_28": ("name", "20261128"),
    "name=2026-11-28": ("name", "2026-11-28"),
    "revision='1234e56'": ("revision", "1234e56"),
}
print("hydra", hydra.__version__, "omegaconf", omegaconf.__version__)
for override, (key, expected) in WRITTEN.items():
    with initialize(version_base="1.3", config_path=None):
        value = compose("settings", [override])[key]
    print(f"{override}: {value!r}")
    assert value == expected and isinstance(value, str), override
PY
environment/bin/python -W ignore check.py
echo "as described: a str field of Hydra's command line holds a number where its text could be one"
