"""range(START,STOP,STEP) of a multirun, where Hydra adds its steps up in binary fractions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import RangeSweep
from hydra.errors import HydraException

from qtarget.errors import QTargetError


def check_ranges(overrides: Iterable[str]) -> None:
    """Raise QTargetError for a range that gives other values than it says.

    Hydra 1.3.8 makes range(0,0.9,0.3) four values, the last 0.8999999999999999, and the third of range(0.1,0.5,0.1)
    0.30000000000000004: another job than the finished one of 0.3.
    """
    for override in overrides:
        sweep = _range(override)
        if sweep is None:
            continue
        if not sweep.step:
            raise QTargetError(f"{override}: the STEP of range(START,STOP,STEP) can't be 0")
        given, meant = list(sweep.range()), list(_decimals(sweep))
        if given != meant:
            key = override.partition("=")[0]
            raise QTargetError(
                f"{override} is {', '.join(map(str, given))} to Hydra, which adds steps up in binary fractions: write "
                f"the values out, {key}={','.join(map(str, meant))}"
            )


def check_swept(params: Mapping[str, object] | None) -> None:
    """The same of `hydra.sweeper.params`, the values that a configuration sweeps."""
    check_ranges(f"{key}={value}" for key, value in (params or {}).items())


def _range(override: str) -> RangeSweep | None:
    if "range(" not in override:
        return None
    try:
        value = OverridesParser.create().parse_override(override).value()
    except HydraException:
        return None  # Hydra says what is wrong with it
    return value if isinstance(value, RangeSweep) else None


def _decimals(sweep: RangeSweep) -> Iterator[float | int]:
    """START + n·STEP before STOP, in decimal arithmetic."""
    start, stop, step = (Decimal(str(end)) for end in (sweep.start, sweep.stop, sweep.step))
    whole = all(isinstance(end, int) for end in (sweep.start, sweep.stop, sweep.step))
    value = start
    while value < stop if step > 0 else value > stop:
        yield int(value) if whole else float(value)
        value += step
