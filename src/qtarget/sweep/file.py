"""W&B's sweep files, read and checked without W&B: what a sweep tries, by which method, and when it gives a run up.

The format is W&B's own (docs.wandb.ai, "sweep configuration"). What it has and can't be done without a server is
refused by name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qtarget import checks
from qtarget.config.composing import nearest
from qtarget.errors import QTargetError
from qtarget.sweep.early_stopping import Hyperband, hyperband
from qtarget.sweep.space import ListedOptions, SweptValues, distribution

METHODS = ("grid", "random", "bayes")
GOALS = ("minimize", "maximize")
KNOWN_KEYS = ("method", "metric", "parameters", "early_terminate", "run_cap", "name", "command", "program")
AT_WANDB = ("description", "project", "entity")
"""Where and under which words W&B shows a sweep: nothing to do here."""
REFUSED = {
    "metrics": "several metrics take W&B's server",
    "scheduler": "other engines take W&B's server",
    "controller": "it takes W&B's server",
    "job": "launching jobs takes W&B's server",
    "image_uri": "launching images takes W&B's server",
    "apiVersion": "it belongs to W&B's launch queues",
    "kind": "it belongs to W&B's launch queues",
}
ARGUMENTS = {"${args_no_hyphens}": "", "${args_append_hydra}": "+", "${args_override_hydra}": "++"}
"""How a command takes its point → what stands before key=value."""
TYPICAL_COMMAND = ["${env}", "qtarget", "train", "${args_no_hyphens}"]
ENVIRONMENT = re.compile(r"\$\{envvar:(\w+)\}")
KEY = re.compile(r"[A-Za-z_][\w.@/-]*")
FOLDER = re.compile(r"[^/\\.'][^/\\']*")


@dataclass(frozen=True)
class Metric:
    name: str
    maximize: bool

    def best(self, values: Sequence[float]) -> float:
        return max(values) if self.maximize else min(values)

    def lower_is_better(self, value: float) -> float:
        return -value if self.maximize else value


@dataclass(frozen=True)
class SweepFile:
    """What a sweep file says.

    parameters: what is searched. constants: keys of one value. before, after: the command's fixed arguments on either
    side of the point's. prefix: stands before the point's keys: "", "+" or "++".
    """

    path: Path
    name: str
    method: str
    parameters: Mapping[str, SweptValues]
    constants: Mapping[str, Any]
    metric: Metric | None
    stopping: Hyperband | None
    run_cap: int | None
    before: tuple[str, ...]
    after: tuple[str, ...]
    prefix: str
    raw_parameters: Mapping[str, Any]
    """The parameters as they were written, key by key: what makes two files the same sweep."""


def read_sweep(path: Path) -> SweepFile:
    """Raises QTargetError for what the user has to mend, with the file's name."""
    try:
        return _read(path, _loaded(path))
    except QTargetError as error:
        raise QTargetError(f"{path}: {error}") from error


def _loaded(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise QTargetError(
            f"can't be read ({error.strerror}); name a sweep file, such as sweeps/smoothing.yaml"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise QTargetError(f"is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise QTargetError("a sweep file is a mapping with method, metric and parameters")
    return content


def _read(path: Path, content: Mapping[str, Any]) -> SweepFile:
    _check_keys(content)
    method = str(content.get("method"))
    checks.choice("method", method, METHODS)
    raw_parameters = dict(_flat(content.get("parameters")))
    swept = {key: distribution(key, fields) for key, fields in raw_parameters.items()}
    constants = {
        key: only.options[0]
        for key, only in swept.items()
        if isinstance(only, ListedOptions) and len(only.options) == 1
    }
    parameters = {key: values for key, values in swept.items() if key not in constants}
    metric = _metric(content.get("metric"))
    stopping = hyperband(content["early_terminate"]) if "early_terminate" in content else None
    _check_method(method, parameters, metric, stopping)
    if content.get("run_cap") is not None:
        checks.whole("run_cap", content["run_cap"], 1)
    before, prefix, after = _command(content)
    name = _name(content.get("name", path.stem))
    cap = content.get("run_cap")
    return SweepFile(
        path, name, method, parameters, constants, metric, stopping, cap, before, after, prefix, raw_parameters
    )


def _check_keys(content: Mapping[str, Any]) -> None:
    for key in content:
        if key in REFUSED:
            raise QTargetError(f"{key!r} is not supported offline: {REFUSED[key]}")
        if key not in (*KNOWN_KEYS, *AT_WANDB):
            raise QTargetError(f"unknown key {key!r}{nearest(str(key), KNOWN_KEYS)}")


def _flat(parameters: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, its fields); `parameters` within a parameter are keys below it."""
    if not isinstance(parameters, dict) or not parameters:
        raise QTargetError(f"{above or 'parameters'} must hold at least one key, got {parameters!r}")
    for key, fields in parameters.items():
        if not isinstance(key, str) or not KEY.fullmatch(key):
            raise QTargetError(f"{key!r} is no key of a configuration: letters, digits, `_`, `.`, `/`, `@` and `-`")
        if isinstance(fields, dict) and "parameters" in fields:
            if len(fields) > 1:
                raise QTargetError(f"{above}{key} has `parameters` below it, so nothing else may stand beside them")
            yield from _flat(fields["parameters"], f"{above}{key}.")
        else:
            yield f"{above}{key}", fields


def _metric(fields: Any) -> Metric | None:
    if fields is None:
        return None
    if not isinstance(fields, dict) or not isinstance(fields.get("name"), str):
        raise QTargetError(f"metric needs `name: …`, such as val/nll, got {fields!r}")
    for field in fields:
        if field not in ("name", "goal"):
            raise QTargetError(f"metric.{field} is not supported offline; a metric has name and goal")
    goal = fields.get("goal", "minimize")
    checks.choice("metric.goal", goal, GOALS)
    return Metric(fields["name"], goal == "maximize")


def _check_method(
    method: str, parameters: Mapping[str, SweptValues], metric: Metric | None, stopping: Hyperband | None
) -> None:
    if metric is None and (method == "bayes" or stopping):
        raise QTargetError(f"{'early_terminate' if stopping else 'bayes'} needs `metric: {{name: …, goal: …}}`")
    if stopping and metric and metric.name.startswith("test/"):
        during = f"val/{metric.name.removeprefix('test/')}"
        raise QTargetError(
            f"early_terminate needs a metric of the time of training, such as {during}, not {metric.name}"
        )
    if method != "grid":
        return
    for key, values in parameters.items():
        if values.listed is None:
            raise QTargetError(
                f"{key}: a grid takes a list of values, int_uniform or q_uniform, and no probabilities; "
                "`method: random` draws from a continuous range"
            )


def _name(name: Any) -> str:
    if not isinstance(name, str) or not FOLDER.fullmatch(name):
        raise QTargetError(
            f"name is a folder's name, without slashes, quotes or a dot in front, got {name!r}; what looks like a "
            "number or a date is put in quotes"
        )
    return name


# The command


def _command(content: Mapping[str, Any]) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """(fixed arguments before the point's, prefix of the point's keys, fixed arguments after them)."""
    command = content.get("command")
    if not isinstance(command, list) or not all(isinstance(word, str | int | float) for word in command):
        raise QTargetError(f"needs `command: {_shown(TYPICAL_COMMAND)}`, as W&B's agents do, got {command!r}")
    words = [_filled(str(word), content) for word in command]
    arguments = _arguments(words)
    macros = [word for word in arguments if re.fullmatch(r"\$\{\w+\}", word)]
    if len(macros) != 1 or macros[0] not in ARGUMENTS:
        raise QTargetError(
            f"the command must hold one of {', '.join(ARGUMENTS)}, once: qtarget reads key=value; got {_shown(command)}"
        )
    for word in arguments:
        if word.startswith("-"):
            raise QTargetError(f"the command may fix overrides, such as experiment=demo, but no options: {word}")
    index = arguments.index(macros[0])
    return tuple(arguments[:index]), ARGUMENTS[macros[0]], tuple(arguments[index + 1 :])


def _arguments(words: list[str]) -> list[str]:
    """What follows `qtarget train`. Raises QTargetError for another program."""
    command = list(words)
    if command and command[0] in ("${env}", "/usr/bin/env", "env"):
        command = command[1:]
    is_python = len(command) > 1 and re.fullmatch(r"\$\{interpreter\}|(.*/)?python[\d.]*", command[0])
    if is_python and command[1] == "-m":
        command = command[2:]
    if len(command) < 2 or Path(command[0]).name != "qtarget" or command[1] != "train":
        raise QTargetError(
            f"the command must run qtarget train, such as {_shown(TYPICAL_COMMAND)}; got {_shown(words)}"
        )
    return command[2:]


def _filled(word: str, content: Mapping[str, Any]) -> str:
    """A word of the command with the program's name and the environment's values."""
    for name in ENVIRONMENT.findall(word):
        if name not in os.environ:
            raise QTargetError(f"the command reads {name} from the environment, which has none: export {name}=…")
    filled = ENVIRONMENT.sub(lambda match: os.environ[match[1]], word)
    return filled.replace("${program}", str(content.get("program", "${program}")))


def _shown(words: list[Any]) -> str:
    return "[" + ", ".join(f'"{word}"' for word in words) + "]"
