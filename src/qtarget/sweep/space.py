"""What a sweep tries for one key: the distributions of W&B's sweep files, each as its quantile function.

`at(u)`, u in [0, 1], is the value that a share u of the draws lie below. Random search asks it with uniform numbers,
Bayesian search proposes u itself, so that both follow the distribution's own scale.

Not Optuna's distributions, which lack 11 of these 18: normal, beta, inverse and weighted ones, and `q` on a logarithmic
scale.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from statistics import NormalDist
from typing import Any, Protocol

from qtarget.config.composing import nearest
from qtarget.config.names import is_name
from qtarget.errors import QTargetError

EDGE = 1e-12
"""The quantiles 0 and 1 of an unbounded distribution are infinite; it is asked no nearer to them than this."""
LARGEST_EXPONENT = 700.0
"""e to it is about the largest number."""
TEXT_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")
"""What people write for a number and YAML reads as text: 1e-5 without a point."""


class SweptValues(Protocol):
    """What a key may be. listed: all values in order, for a grid; None where there is no such list."""

    @property
    def listed(self) -> tuple[Any, ...] | None: ...

    def quantile(self, u: float) -> Any:
        """The value below which a share u in [0, 1) of the draws lies."""
        ...


@dataclass(frozen=True)
class ListedOptions:
    """One of `options`, each as likely as the others or by `weights`, which sum to 1."""

    options: tuple[Any, ...]
    weights: tuple[float, ...] | None = None

    @property
    def listed(self) -> tuple[Any, ...] | None:
        return None if self.weights else self.options

    def quantile(self, u: float) -> Any:
        if self.weights is None:
            return self.options[min(int(u * len(self.options)), len(self.options) - 1)]
        possible = [(option, weight) for option, weight in zip(self.options, self.weights, strict=True) if weight]
        reached = accumulate(weight for _, weight in possible)
        return next((option for (option, _), top in zip(possible, reached, strict=True) if u < top), possible[-1][0])


@dataclass(frozen=True)
class WholeNumbers:
    """Whole numbers from low to high, both included."""

    low: int
    high: int

    @property
    def listed(self) -> tuple[int, ...]:
        return tuple(range(self.low, self.high + 1))

    def quantile(self, u: float) -> int:
        return min(self.low + int(u * (self.high - self.low + 1)), self.high)


@dataclass(frozen=True)
class UniformValues:
    low: float
    high: float

    def quantile(self, u: float) -> float:
        return self.low + u * (self.high - self.low)


@dataclass(frozen=True)
class Normal:
    mu: float
    sigma: float

    def quantile(self, u: float) -> float:
        return NormalDist(self.mu, self.sigma).inv_cdf(min(max(u, EDGE), 1 - EDGE)) if self.sigma else self.mu


@dataclass(frozen=True)
class Beta:
    a: float
    b: float

    def quantile(self, u: float) -> float:
        from scipy.special import betaincinv  # slow to import, and rarely needed

        return float(betaincinv(self.a, self.b, u))


@dataclass(frozen=True)
class Continuous:
    """Numbers within [low, high], distributed as `shape`.

    exponential: e to the power of such numbers. q: rounded to the nearest of its multiples within the bounds; W&B takes
    the nearest also where that lies beyond them.
    """

    shape: UniformValues | Normal | Beta
    exponential: bool = False
    low: float = -math.inf
    high: float = math.inf
    q: float | None = None

    @property
    def listed(self) -> tuple[float, ...] | None:
        """Of q_uniform, from low in steps of q to below high: the grid that W&B makes of it."""
        if self.q is None or self.exponential or not isinstance(self.shape, UniformValues):
            return None
        count = math.ceil(round((self.high - self.low) / self.q, 9))
        return tuple(_rounded(self.low + step * self.q, self.q) for step in range(count))

    def quantile(self, u: float) -> float:
        value = self.shape.quantile(u)
        value = math.exp(min(value, LARGEST_EXPONENT)) if self.exponential else value
        value = min(max(value, self.low), self.high)
        if self.q is None:
            return value
        first, last = self.multiples
        return _rounded(min(max(round(value / self.q), first), last) * self.q, self.q)

    @property
    def multiples(self) -> tuple[float, float]:
        """The first and last multiple of q within the bounds, in units of q."""
        assert self.q is not None
        first = math.ceil(self.low / self.q - 1e-9) if math.isfinite(self.low) else -math.inf
        last = math.floor(self.high / self.q + 1e-9) if math.isfinite(self.high) else math.inf
        return first, last


def _rounded(value: float, q: float) -> float:
    """Without the last digits that a product of floats leaves: 0.3, not 0.30000000000000004; an int where q is one."""
    return int(value) if isinstance(q, int) and float(value).is_integer() else float(f"{value:.12g}")


# From the fields of a sweep file

Fields = Mapping[str, Any]


def distribution(key: str, fields: Any) -> SweptValues:
    """What a sweep file says of one key; raises QTargetError with the key, what is wrong and what would be right."""
    if not isinstance(fields, Mapping):
        raise QTargetError(f"{key}: write `value: …`, `values: […]` or `min: …, max: …` below it, got {fields!r}")
    name = fields["distribution"] if "distribution" in fields else _implied(key, fields)
    if name not in DISTRIBUTIONS:
        raise QTargetError(f"{key}: unknown distribution {name!r}{nearest(str(name), DISTRIBUTIONS)}")
    required, optional, make = DISTRIBUTIONS[name]
    legal = {"distribution", *required, *optional}
    for field in fields:
        if field not in legal:
            raise QTargetError(f"{key}: {name} has no {field!r}{nearest(str(field), legal)}")
    missing = [field for field in required if field not in fields]
    if missing:
        raise QTargetError(f"{key}: {name} needs {' and '.join(missing)}")
    return make(key, {**optional, **fields})


def _implied(key: str, fields: Fields) -> str:
    """The distribution that W&B takes where none is named."""
    if "value" in fields:
        return "constant"
    if "values" in fields:
        return "categorical"
    if "min" in fields and "max" in fields:
        return "int_uniform" if all(type(fields[end]) is int for end in ("min", "max")) else "uniform"
    raise QTargetError(
        f"{key}: needs value, values, or min and max; other distributions are named by `distribution: …`, one of "
        + ", ".join(DISTRIBUTIONS)
    )


def _constant(key: str, fields: Fields) -> SweptValues:
    return ListedOptions((_legal(key, fields["value"]),))


def _categorical(key: str, fields: Fields) -> SweptValues:
    values, weights = fields["values"], fields["probabilities"]
    if not isinstance(values, list) or not values:
        raise QTargetError(f"{key}: values must be a list of at least one, got {values!r}")
    options = tuple(_legal(key, value) for value in values)
    return ListedOptions(options, None if weights is None else _weights(key, weights, len(options)))


def _weights(key: str, probabilities: Any, count: int) -> tuple[float, ...]:
    if not isinstance(probabilities, list) or len(probabilities) != count:
        raise QTargetError(f"{key}: probabilities must be a list as long as values ({count}), got {probabilities!r}")
    weights = tuple(_number(key, "probabilities", weight, 0.0) for weight in probabilities)
    if not math.isclose(sum(weights), 1.0, rel_tol=1e-5):
        raise QTargetError(f"{key}: probabilities must sum to 1, these sum to {sum(weights):g}")
    return weights


def _legal(key: str, value: Any) -> Any:
    """A value as it is, where no reader on the way takes it for something else."""
    check_value(key, value)
    if is_number_to_hydra(key, value):
        raise QTargetError(f"{key}: YAML reads {value} as text: write {_with_point(value)}")
    if isinstance(value, list):
        return [_legal(key, part) for part in value]
    return value


def check_value(key: str, value: Any) -> None:
    """Raise QTargetError for a name that YAML has read as something else: of 2026_11_27 the number 20261127 is left."""
    if is_name(key) and isinstance(value, bool | int | float):
        raise QTargetError(f"{key} is text, and {value!r} is none: write it in quotes, as '2026_11_27'")


def is_number_to_hydra(key: str, value: Any) -> bool:
    """Whether a text of a sweep file, as people write 1e-5, is a number on a command line. That of a name is text."""
    return isinstance(value, str) and not is_name(key) and bool(TEXT_NUMBER.fullmatch(value))


def _with_point(text: str) -> str:
    """A number as YAML reads it: with a point, and a sign in its exponent."""
    mantissa, _, exponent = text.lower().partition("e")
    signed = exponent if exponent[0] in "+-" else f"+{exponent}"
    return f"{mantissa if '.' in mantissa else f'{mantissa}.0'}e{signed}"


def _int_uniform(key: str, fields: Fields) -> SweptValues:
    for end in ("min", "max"):
        if type(fields[end]) is not int:
            raise QTargetError(f"{key}: {end} of int_uniform must be a whole number, got {fields[end]!r}")
    low, high = _bounds(key, fields)
    return WholeNumbers(int(low), int(high))


def _uniform(key: str, fields: Fields) -> SweptValues:
    low, high = _bounds(key, fields)
    return _quantised(key, fields, Continuous(UniformValues(low, high), False, low, high, fields.get("q")))


def _log_values(key: str, fields: Fields) -> SweptValues:
    """min and max are values."""
    low, high = _bounds(key, fields)
    if low <= 0:
        raise QTargetError(f"{key}: min of {fields['distribution']} must be above 0, got {low!r}")
    shape = UniformValues(math.log(low), math.log(high))
    return _quantised(key, fields, Continuous(shape, True, low, high, fields.get("q")))


def _log_exponents(key: str, fields: Fields) -> SweptValues:
    """min and max are exponents of e, for inv_log_uniform of 1/e."""
    low, high = _bounds(key, fields)
    if max(abs(low), abs(high)) > LARGEST_EXPONENT:
        raise QTargetError(
            f"{key}: min and max of {fields['distribution']} are exponents of e, so at most {LARGEST_EXPONENT:g}; "
            f"for values as they are take {fields['distribution']}_values"
        )
    low, high = (-high, -low) if fields["distribution"].startswith("inv") else (low, high)
    made = Continuous(UniformValues(low, high), True, math.exp(low), math.exp(high), fields.get("q"))
    return _quantised(key, fields, made)


def _normal(key: str, fields: Fields) -> SweptValues:
    shape = Normal(_number(key, "mu", fields["mu"]), _number(key, "sigma", fields["sigma"], 0.0))
    return _quantised(key, fields, Continuous(shape, "log" in fields["distribution"], q=fields.get("q")))


def _beta(key: str, fields: Fields) -> SweptValues:
    for field in ("a", "b"):
        if _number(key, field, fields[field]) <= 0:
            raise QTargetError(f"{key}: {field} must be above 0, got {fields[field]!r}")
    return _quantised(key, fields, Continuous(Beta(fields["a"], fields["b"]), False, 0.0, 1.0, fields.get("q")))


def _quantised(key: str, fields: Fields, made: Continuous) -> Continuous:
    """With q checked."""
    if "q" not in fields:
        return made
    if _number(key, "q", fields["q"]) <= 0:
        raise QTargetError(f"{key}: q must be above 0, got {fields['q']!r}")
    first, last = made.multiples
    if first > last:
        raise QTargetError(f"{key}: no multiple of q={fields['q']} lies between {made.low:g} and {made.high:g}")
    return made


def _bounds(key: str, fields: Fields) -> tuple[float, float]:
    low, high = (_number(key, end, fields[end]) for end in ("min", "max"))
    if low >= high:
        raise QTargetError(f"{key}: min must be below max, got {low!r} and {high!r}; for one value write `value: …`")
    return low, high


def _number(key: str, field: str, value: Any, lowest: float = -math.inf) -> float:
    _legal(key, value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < lowest:
        least = f" of at least {lowest:g}" if math.isfinite(lowest) else ""
        raise QTargetError(f"{key}: {field} must be a number{least}, got {value!r}")
    return value


Table = dict[str, tuple[tuple[str, ...], dict[str, Any], Callable[[str, Fields], SweptValues]]]
RANGE = ("min", "max")
DISTRIBUTIONS: Table = {
    "constant": (("value",), {}, _constant),
    "categorical": (("values",), {"probabilities": None}, _categorical),
    "categorical_w_probabilities": (("values", "probabilities"), {}, _categorical),
    "int_uniform": (RANGE, {}, _int_uniform),
    "uniform": (RANGE, {}, _uniform),
    "q_uniform": (RANGE, {"q": 1}, _uniform),
    "log_uniform": (RANGE, {}, _log_exponents),
    "log_uniform_values": (RANGE, {}, _log_values),
    "q_log_uniform": (RANGE, {"q": 1}, _log_exponents),
    "q_log_uniform_values": (RANGE, {"q": 1}, _log_values),
    "inv_log_uniform": (RANGE, {}, _log_exponents),
    "inv_log_uniform_values": (RANGE, {}, _log_values),
    "normal": ((), {"mu": 0.0, "sigma": 1.0}, _normal),
    "q_normal": ((), {"mu": 0.0, "sigma": 1.0, "q": 1}, _normal),
    "log_normal": ((), {"mu": 0.0, "sigma": 1.0}, _normal),
    "q_log_normal": ((), {"mu": 0.0, "sigma": 1.0, "q": 1}, _normal),
    "beta": ((), {"a": 1.0, "b": 1.0}, _beta),
    "q_beta": ((), {"a": 1.0, "b": 1.0, "q": 1}, _beta),
}
"""name → (fields it needs, fields it may have with their defaults, what makes it)."""
