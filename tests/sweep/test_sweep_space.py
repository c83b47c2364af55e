"""Distributions of sweep files: values by hand, laws against scipy's own distributions, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from qtarget.errors import QTargetError
from qtarget.sweep.points import random_point
from qtarget.sweep.space import DISTRIBUTIONS, distribution

HALFWAY = (0.0, 0.5, 1.0)
BY_HAND: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
    ({"value": "x"}, ("x", "x", "x")),
    ({"value": None, "distribution": "constant"}, (None, None, None)),
    ({"values": [1, 2, 3]}, (1, 2, 3)),
    ({"values": ["a", True], "distribution": "categorical"}, ("a", True, True)),
    ({"values": ["a", "b", "c"], "probabilities": [0.2, 0.8, 0.0]}, ("a", "b", "b")),
    ({"values": [5, 6], "probabilities": [0, 1], "distribution": "categorical_w_probabilities"}, (6, 6, 6)),
    ({"min": 1, "max": 4}, (1, 3, 4)),
    ({"min": 0, "max": 2, "distribution": "int_uniform"}, (0, 1, 2)),
    ({"min": 0, "max": 2.0}, (0.0, 1.0, 2.0)),
    ({"min": 1, "max": 2, "distribution": "uniform"}, (1.0, 1.5, 2.0)),
    ({"min": 0, "max": 10, "q": 3, "distribution": "q_uniform"}, (0, 6, 9)),
    ({"min": 0.05, "max": 0.3, "q": 0.1, "distribution": "q_uniform"}, (0.1, 0.2, 0.3)),
    ({"min": 2.4, "max": 8.0, "distribution": "q_uniform"}, (3, 5, 8)),
    ({"min": 0.0, "max": 2.0, "distribution": "log_uniform"}, (1.0, math.e, math.e**2)),
    ({"min": 1e-4, "max": 1.0, "distribution": "log_uniform_values"}, (1e-4, 1e-2, 1.0)),
    ({"min": 0.0, "max": 4.0, "distribution": "q_log_uniform"}, (1, 7, 54)),
    ({"min": 1, "max": 100, "q": 5, "distribution": "q_log_uniform_values"}, (5, 10, 100)),
    ({"min": 0.0, "max": 2.0, "distribution": "inv_log_uniform"}, (math.e**-2, math.e**-1, 1.0)),
    ({"min": 1e-2, "max": 1.0, "distribution": "inv_log_uniform_values"}, (1e-2, 1e-1, 1.0)),
]


@pytest.mark.parametrize(("fields", "expected"), BY_HAND, ids=lambda value: str(value)[:60])
def test_values_at_the_ends_and_in_the_middle(fields: dict[str, Any], expected: tuple[Any, ...]) -> None:
    found = tuple(distribution("key", fields).quantile(u) for u in HALFWAY)
    if all(isinstance(value, float) for value in expected):
        assert found == pytest.approx(expected)
    else:
        assert [(type(value), value) for value in found] == [(type(value), value) for value in expected]


SAME_AS_SCIPY: list[tuple[dict[str, Any], Any]] = [
    ({"distribution": "uniform", "min": -1.0, "max": 3.0}, stats.uniform(-1, 4)),
    ({"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-2}, stats.loguniform(1e-5, 1e-2)),
    ({"distribution": "inv_log_uniform_values", "min": 1e-5, "max": 1e-2}, stats.loguniform(1e-5, 1e-2)),
    ({"distribution": "log_uniform", "min": -3.0, "max": 1.0}, stats.loguniform(math.exp(-3), math.exp(1))),
    ({"distribution": "normal", "mu": 2.0, "sigma": 0.5}, stats.norm(2, 0.5)),
    ({"distribution": "normal"}, stats.norm()),
    ({"distribution": "log_normal", "mu": 1.0, "sigma": 0.3}, stats.lognorm(s=0.3, scale=math.e)),
    ({"distribution": "beta", "a": 2.0, "b": 5.0}, stats.beta(2, 5)),
    ({"distribution": "int_uniform", "min": 3, "max": 9}, stats.randint(3, 10)),
]


@pytest.mark.parametrize(("fields", "law"), SAME_AS_SCIPY, ids=lambda value: str(value)[:60])
def test_quantiles_are_those_of_scipy(fields: dict[str, Any], law: Any) -> None:
    shares = np.linspace(0.003, 0.997, 41)
    one = distribution("key", fields)
    np.testing.assert_allclose([one.quantile(float(u)) for u in shares], law.ppf(shares), rtol=1e-9)


@pytest.mark.parametrize(("fields", "law"), SAME_AS_SCIPY[:-1], ids=lambda value: str(value)[:60])
def test_random_points_follow_their_law(fields: dict[str, Any], law: Any) -> None:
    """Kolmogorov and Smirnov's test of 400 draws; the seed is fixed, so it can't fail by chance."""
    space = {"key": distribution("key", fields), "other": distribution("other", {"values": [1, 2]})}
    drawn = [random_point(space, 7, number) for number in range(400)]
    assert stats.kstest([point["key"] for point in drawn], law.cdf).pvalue > 0.01
    assert 150 < sum(point["other"] == 1 for point in drawn) < 250


@pytest.mark.parametrize("name", [name for name in DISTRIBUTIONS if name.startswith("q_")])
@pytest.mark.parametrize("q", [2, 0.25])
def test_quantised_values_are_multiples_within_the_bounds(name: str, q: float) -> None:
    bounds = {"min": 0.7, "max": 3.9} if "uniform" in name else {}
    one = distribution("key", {"distribution": name, "q": q, **bounds})
    low, high = (bounds["min"], bounds["max"]) if bounds else (-math.inf, math.inf)
    if name == "q_log_uniform":
        low, high = math.exp(low), math.exp(high)
    for u in np.linspace(0, 1, 201):
        value = one.quantile(float(u))
        assert low - 1e-9 <= value <= high + 1e-9
        assert math.isclose(value / q, round(value / q), abs_tol=1e-9)
        assert isinstance(value, int) == isinstance(q, int)


@pytest.mark.parametrize("name", list(DISTRIBUTIONS))
def test_quantiles_never_fall(name: str) -> None:
    fields = {"distribution": name}
    fields |= {"min": 1, "max": 9} if "uniform" in name else {}  # type: ignore[dict-item]
    fields |= {"value": 1} if name == "constant" else {}  # type: ignore[dict-item]
    fields |= {"values": [1, 2, 3]} if "categorical" in name else {}  # type: ignore[dict-item]
    fields |= {"probabilities": [0.5, 0.25, 0.25]} if "_w_" in name else {}  # type: ignore[dict-item]
    one = distribution("key", fields)
    values = [one.quantile(float(u)) for u in np.linspace(0, 1, 101)]
    assert values == sorted(values)
    assert all(math.isfinite(value) for value in values)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"value": 3}, (3,)),
        ({"values": [3, "a"]}, (3, "a")),
        ({"min": 2, "max": 5}, (2, 3, 4, 5)),
        ({"min": 0.1, "max": 0.4, "q": 0.1, "distribution": "q_uniform"}, (0.1, 0.2, 0.3)),
        ({"min": 1, "max": 6, "q": 2, "distribution": "q_uniform"}, (1, 3, 5)),
        ({"min": 0.1, "max": 0.4}, None),
        ({"min": 1, "max": 9, "distribution": "q_log_uniform_values"}, None),
        ({"distribution": "q_normal"}, None),
        ({"values": [1, 2], "probabilities": [0.5, 0.5]}, None),
    ],
)
def test_what_a_grid_makes_of_it(fields: dict[str, Any], expected: tuple[Any, ...] | None) -> None:
    assert distribution("key", fields).listed == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (3, "key: write `value"),
        ({}, "needs value, values, or min and max"),
        ({"min": 1}, "needs value, values, or min and max"),
        ({"min": 1, "max": 2, "q": 1}, "int_uniform has no 'q'"),
        ({"values": []}, "at least one"),
        ({"values": [1], "probabilites": [1]}, "did you mean 'probabilities'"),
        ({"values": [1, 2], "probabilities": [1]}, "as long as values"),
        ({"values": [1, 2], "probabilities": [0.5, 0.6]}, "sum to 1"),
        ({"values": [1, 2], "probabilities": [1.5, -0.5]}, "at least 0"),
        ({"distribution": "log_unifrom", "min": 1, "max": 2}, "did you mean 'log_uniform'"),
        ({"distribution": "uniform", "min": 1}, "needs max"),
        ({"distribution": "uniform", "min": 2, "max": 1}, "min must be below max"),
        ({"min": 2, "max": 2}, "min must be below max"),
        ({"distribution": "uniform", "min": "1e-5", "max": 1}, "write 1.0e-5"),
        ({"values": ["1e5"]}, r"write 1\.0e\+5"),
        ({"values": [["1.e5"]]}, r"write 1\.e\+5"),
        ({"min": True, "max": 2}, "min must be a number"),
        ({"distribution": "int_uniform", "min": 1.5, "max": 3}, "whole number"),
        ({"distribution": "log_uniform_values", "min": 0, "max": 3}, "above 0"),
        ({"distribution": "log_uniform", "min": 1, "max": 1000}, "take log_uniform_values"),
        ({"distribution": "q_uniform", "min": 1, "max": 2, "q": 0}, "q must be above 0"),
        ({"distribution": "q_uniform", "min": 1.2, "max": 1.8}, "no multiple of q=1"),
        ({"distribution": "normal", "sigma": -1}, "sigma must be a number of at least 0"),
        ({"distribution": "beta", "a": 0}, "a must be above 0"),
    ],
)
def test_what_is_wrong_is_said(fields: Any, message: str) -> None:
    with pytest.raises(QTargetError, match=message):
        distribution("key", fields)
