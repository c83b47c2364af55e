"""The stopping rule: W&B's own example, bands by hand, and the laws of the rule."""

from __future__ import annotations

from typing import Any

import pytest

from qtarget.errors import QTargetError
from qtarget.sweep.early_stopping import hyperband

LOSSES = {"a": (10, 9), "b": (10, 10), "c": (10, 8, 8), "d": (10, 7, 7), "e": (10, 6, 6)}
"""The runs of the example in the documentation of W&B's rule, by which b alone is stopped."""


def test_the_example_of_the_published_rule() -> None:
    rule = hyperband({"type": "hyperband", "max_iter": 5, "eta": 2, "s": 2})
    assert rule.bands == (1, 2)
    assert {name for name in "bcd" if rule.stop_reason(name, LOSSES)} == {"b"}


@pytest.mark.parametrize(
    ("fields", "bands"),
    [
        ({"max_iter": 27, "s": 2}, (3, 9)),
        ({"max_iter": 27, "s": 9}, (1, 3, 9)),
        ({"max_iter": 10, "s": 2, "eta": 2}, (2, 5)),
        ({"min_iter": 3}, (3, 9, 27)),
        ({"min_iter": 4, "eta": 1.5}, (4, 6, 9)),
    ],
)
def test_bands(fields: dict[str, Any], bands: tuple[int, ...]) -> None:
    assert hyperband({"type": "hyperband", **fields}).bands[:3] == bands


def test_a_lenient_rule_looks_at_the_best_value_so_far() -> None:
    histories = {"late": (1.0, 9.0), "x": (2.0, 2.0), "y": (3.0, 3.0)}
    strict, lenient = (hyperband({"type": "hyperband", "min_iter": 2, "strict": strict}) for strict in (True, False))
    assert strict.stop_reason("late", histories)
    assert lenient.stop_reason("late", histories) is None


def test_nobody_is_stopped_alone_or_before_the_first_band() -> None:
    rule = hyperband({"type": "hyperband", "min_iter": 2})
    assert rule.stop_reason("a", {"a": (5.0, 5.0)}) is None
    assert rule.stop_reason("a", {"a": (5.0,), "b": (1.0, 1.0)}) is None


def test_a_third_goes_on() -> None:
    histories = {str(value): (float(value),) for value in range(9)}
    rule = hyperband({"type": "hyperband", "min_iter": 1, "eta": 3})
    going_on = [name for name in histories if rule.stop_reason(name, histories) is None]
    assert going_on == ["0", "1", "2", "3"]  # the threshold is the value at a third, itself included: W&B's index


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("hyperband", "needs `type: hyperband`"),
        ({"type": "envelope"}, "the only rule"),
        ({"type": "hyperband"}, "one of min_iter and max_iter"),
        ({"type": "hyperband", "min_iter": 1, "max_iter": 2, "s": 1}, "one of min_iter and max_iter"),
        ({"type": "hyperband", "max_iter": 9}, r"early_terminate\.s must be a whole number"),
        ({"type": "hyperband", "min_iter": 0}, r"early_terminate\.min_iter must be a whole number"),
        ({"type": "hyperband", "min_iter": 1, "eta": 1}, "above 1"),
        ({"type": "hyperband", "min_iter": 1, "strict": "yes"}, "strict must be one of"),
        ({"type": "hyperband", "min_iters": 1}, "did you mean 'min_iter'"),
        ({"type": "hyperband", "max_iter": 2, "s": 1, "eta": 3}, "no iteration to stop at"),
    ],
)
def test_what_is_wrong_is_said(fields: Any, message: str) -> None:
    with pytest.raises(QTargetError, match=message):
        hyperband(fields)


@pytest.mark.parametrize("worst", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("strict", [True, False])
def test_a_diverged_run_is_stopped_alone_or_not(worst: float, strict: bool) -> None:
    """A comparison with NaN is false, so the published rule lets it go on, and lets −inf win."""
    rule = hyperband({"type": "hyperband", "min_iter": 2, "strict": strict})
    assert "diverged" in str(rule.stop_reason("a", {"a": (1.0, worst)}))
    assert "iteration 3" in str(rule.stop_reason("a", {"a": (1.0, 2.0, worst), "b": (3.0, 3.0, 3.0)}))
    assert rule.stop_reason("a", {"a": (worst,)}) is None  # not before the first band
    assert rule.stop_reason("b", {"a": (1.0, worst), "b": (9.0, 9.0)}) is None  # it spoils nobody's threshold
