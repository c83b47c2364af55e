"""Overrides as Hydra reads them: ranges that mean what they say, and values that are read back.

`range(start,stop,step)` in a multirun is refused where Hydra makes other jobs of it than it says. Hydra 1.3 adds binary
fractions up: range(0,0.9,0.3) has a fourth job at 0.8999999999999999, and range(0.1,0.5,0.1) has 0.30000000000000004,
whose run isn't the finished run of 0.3. Its sort(range(…),reverse=true) begins at stop − step also where no step leads
there: sort(range(1,10,4),reverse=true) is 6, 2, −2.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from shlex import quote
from typing import Any

from hydra import __version__
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep

from qtarget.config.composing import compose_config
from qtarget.config.names import in_quotes
from qtarget.errors import QTargetError

MOST = 100_000
"""Values of one key. Hydra composes every job before the first one runs, 0.1 s each."""
ONE_JOB = "hydra.mode=RUN"
"""What launchers give the jobs that they start: nothing can make a multirun of these, so nothing need be composed."""
BASIC = "BasicSweeper"
"""Hydra's own; others, such as Optuna's, read a range in ways of their own."""
INNER = re.compile(r"range\([^()]*\)")
CAST = re.compile(r"\b(?:int|float)\(")


def check_ranges(overrides: Sequence[str], *, multirun: bool) -> bool:
    """Whether it is a multirun. Raises QTargetError for a range of one that hasn't start, start + step, … below stop.

    overrides: of the command line. multirun: whether it says so; a configuration may, too (hydra.mode), and have
    ranges of its own (hydra.sweeper.params).
    """
    if not multirun and ONE_JOB in overrides:
        return False
    read = _read(overrides)
    hydra = _hydra([text for text, parsed in zip(overrides, read, strict=True) if not parsed.is_sweep_override()])
    params = hydra.sweeper.get("params") or {}
    multirun = multirun or str(hydra.mode).endswith("MULTIRUN")
    if multirun and str(hydra.sweeper._target_).endswith(BASIC):
        swept = [*_read([f"{key}={value}" for key, value in params.items()]), *read]
        for override in {parsed.get_key_element(): parsed for parsed in swept}.values():  # the last of a key counts
            _check(override)
    return multirun


def _read(texts: Sequence[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(texts))


def _hydra(overrides: Sequence[str]) -> Any:
    """Hydra's own settings; its defaults where Hydra itself will say what is wrong, or finds files elsewhere."""
    try:
        return compose_config("train", overrides, with_hydra=True).hydra
    except QTargetError:
        return compose_config("train", with_hydra=True).hydra


def _check(override: Override) -> None:
    value = override.value()
    if isinstance(value, RangeSweep):
        _check_range(override, value)
    elif _holds_range(value.list if isinstance(value, ChoiceSweep) else value):
        raise QTargetError(f"{override.input_line}: a range stands for itself, not within a list: write its values out")


def _holds_range(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(isinstance(part, RangeSweep) or _holds_range(part) for part in parts)


def _check_range(override: Override, sweep: RangeSweep) -> None:
    text, key = str(override.input_line), override.get_key_element()
    wanted = _meant(text, _as_written(override) or sweep)
    _meant(text, sweep)  # refuses what Hydra would never come to the end of
    actual = list(sweep.range())
    if sorted(actual) == sorted(wanted):
        return
    if "sort(" in text:
        wanted.sort(reverse=sweep.step < 0)
    values, former = (f"shuffle({_listed(v)})" if sweep.shuffle else _listed(v) for v in (wanted, actual))
    raise QTargetError(
        f"{text} gives {_listed(actual)} under Hydra {__version__}, not {_listed(wanted)}: write "
        f"{quote(f'{key}={values}')}. Runs that were made of the former are found by {quote(f'{key}={former}')}"
    )


def _as_written(override: Override) -> RangeSweep | None:
    """The range before sort(…) changes its ends; None where a cast changes its numbers."""
    text = override.get_value_string()
    inner = INNER.search(text)
    if inner is None or CAST.search(text):
        return None
    value = _read([f"key={inner[0]}"])[0].value()
    return value if isinstance(value, RangeSweep) else None


def _meant(text: str, sweep: RangeSweep) -> list[Any]:
    """start, start + step, … below stop, in decimals; ints where all three are."""
    ends = (sweep.start, sweep.stop, sweep.step)
    if not all(math.isfinite(number or 0) for number in ends) or not sweep.step:
        raise QTargetError(f"{text}: a range has finite ends and a step other than 0")
    start, stop, step = (Decimal(str(number)) for number in ends)
    count = max(0, math.ceil((stop - start) / step))
    if not 0 < count <= MOST:
        raise QTargetError(f"{text} gives {count} values: a multirun has 1 to {MOST} of a key")
    make = int if all(isinstance(number, int) for number in ends) else float
    return [make(start + index * step) for index in range(count)]


def _listed(values: Sequence[Any]) -> str:
    return ",".join(map(str, values))


PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
OTHER_THAN_TEXT = ("null", "true", "false", "nan", "inf")
"""Words that Hydra reads as something else, in any case."""


def quoted(value: Any) -> str:
    """A value as Hydra's overrides take it, and read it back as the same: null, true, 1e-05, [a,'b c'], 'x=1'."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(quoted, value))}]"
    raise QTargetError(
        f"a {type(value).__name__} can't be a value of a sweep: {value!r}. Take text, numbers, booleans, null or lists "
        "of them; for the fields of a mapping name each by its dotted key"
    )


def _text(value: str) -> str:
    if "${" in value or "\0" in value:
        raise QTargetError(f"{value!r} can't be a value of a sweep: it would be read as a reference to another key")
    if PLAIN.fullmatch(value) and value.lower() not in OTHER_THAN_TEXT:
        return value
    return in_quotes(value)


def override(key: str, value: Any) -> str:
    """key=value, of a point of a sweep. Raises QTargetError with the key for what has no such text."""
    try:
        return f"{key}={quoted(value)}"
    except QTargetError as error:
        raise QTargetError(f"{key.lstrip('+')}: {error}") from error
