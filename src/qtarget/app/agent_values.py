"""The values that a W&B agent hands over, as its sweep file has them.

An agent writes a point on the command line as Python prints it: null becomes `None`, true `True`, a text isn't quoted,
and keys below a key are one mapping. With their types they stand in a file that it names (wandb 0.31.0).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qtarget.errors import QTargetError

PLACE = "WANDB_SWEEP_PARAM_PATH"
"""The variable in which an agent names its file."""


def as_swept(arguments: Sequence[str]) -> list[str]:
    """A command line on which the agent's values are those of the sweep file, by the same texts as `qtarget sweep`."""
    from qtarget.track.sweep import under_agent

    if not under_agent() or not os.environ.get(PLACE):
        return list(arguments)
    values = _values(Path(os.environ[PLACE]))
    return [restored for argument in arguments for restored in _restored(argument, values)]


def _values(file: Path) -> dict[str, Any]:
    import yaml

    try:
        held = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise QTargetError(
            f"a W&B agent started this run, and the file of its values, {file}, can't be read ({error}): start the "
            f"agent in a folder that its runs see, or unset {PLACE} to have the command line alone count"
        ) from error
    return {key: entry["value"] for key, entry in held.items() if isinstance(entry, Mapping) and "value" in entry}


def _restored(argument: str, values: Mapping[str, Any]) -> Iterator[str]:
    """What stands for one argument: itself, where it isn't the agent's."""
    from qtarget.app.quoting import override
    from qtarget.app.sweep_space import check_value, is_number_to_hydra
    from qtarget.track.sinks import flatten

    prefix, key, text = re.fullmatch(r"(\+{0,2})([^=]*)=?(.*)", argument, re.DOTALL).groups()  # type: ignore[union-attr]
    value = values.get(key)
    if key not in values or not (isinstance(value, Mapping) or text == str(value)):
        yield argument
        return
    for place, one in flatten({key: value}).items():
        check_value(place, one)
        _check_quotes(place, one)
        yield f"{prefix}{place}={one}" if is_number_to_hydra(place, one) else override(f"{prefix}{place}", one)


def _check_quotes(key: str, value: Any) -> None:
    """Refuse a text that brings quotes for Hydra along, as agents needed before their file of values was read."""
    if isinstance(value, str) and re.fullmatch(r"'.*'|\".*\"", value, re.DOTALL):
        raise QTargetError(
            f"{key}: the sweep's value {value} has quotes of its own, which would be part of the text: write "
            f"{value[1:-1]} in the sweep file, in YAML's quotes where YAML needs them"
        )
