"""Checks: Hydra checks no types, so whatever it makes checks its own fields, and parts of others' making, by these."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence

from qtarget.errors import QTargetError


def number(name: str, value: object, low: float, high: float = float("inf")) -> None:
    """Raise unless `value` is a number in [low, high]."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (math.isfinite(value) and low <= value <= high)
    ):
        raise QTargetError(f"{name} must lie in {interval(low, high)}, got {value!r}")


def whole(name: str, value: object, low: int, high: int | None = None) -> None:
    """Raise unless `value` is a whole number of at least `low`, and at most `high` where there is one."""
    fits = isinstance(value, int) and not isinstance(value, bool) and low <= value
    if not fits or (high is not None and isinstance(value, int) and value > high):
        most = "" if high is None else f" and at most {high}"
        raise QTargetError(f"{name} must be a whole number of at least {low}{most}, got {value!r}")


def weight(name: str, value: object) -> None:
    """A finite number above 0: what is weighted 0 isn't there."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise QTargetError(f"{name}: a weight must be a number above 0, got {value!r}")


def choice(name: str, value: object, legal: Sequence[object]) -> None:
    """Raise unless `value` is one of `legal`."""
    if value not in legal:
        raise QTargetError(f"{name} must be one of {', '.join(map(str, legal))}, got {value!r}")


def interval(low: float, high: float) -> str:
    return f"[{low:g}, {high:g}]" if high != float("inf") else f"[{low:g}, ∞)"


def implements(name: str, part: object, protocol: type) -> None:
    """Raise QTargetError unless `part` has the methods of a protocol, each callable with the protocol's arguments.

    name: what the part is to the user, such as "tracker".
    """
    methods = dict(_methods(protocol))
    wanted = ", ".join(f"{method}{signature}" for method, signature in methods.items())
    for method, signature in methods.items():
        own = getattr(part, method, None)
        if not callable(own):
            raise QTargetError(f"{name}: {class_name(part)} has no method {method}; it needs {wanted}")
        if not _takes(own, signature):
            raise QTargetError(
                f"{name}: {class_name(part)}.{method} is called as {method}{signature} and takes "
                f"{inspect.signature(own)}"
            )


def class_name(part: object) -> str:
    """Its class by the path that a `_target_` names."""
    kind = part if isinstance(part, type) else type(part)
    return f"{kind.__module__}.{kind.__qualname__}"


def _methods(protocol: type) -> Iterator[tuple[str, inspect.Signature]]:
    """Name → arguments without `self` and without types."""
    for name, method in vars(protocol).items():
        if inspect.isfunction(method) and (name == "__call__" or not name.startswith("_")):
            _, *arguments = inspect.signature(method).parameters.values()
            plain = [argument.replace(annotation=inspect.Parameter.empty) for argument in arguments]
            yield name, inspect.Signature(plain)


def _takes(method: object, wanted: inspect.Signature) -> bool:
    try:
        own = inspect.signature(method)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # compiled code without a signature
        return True
    named = [parameter.name for parameter in wanted.parameters.values() if parameter.kind is parameter.KEYWORD_ONLY]
    try:
        own.bind(*[None] * (len(wanted.parameters) - len(named)), **dict.fromkeys(named))
    except TypeError:
        return False
    return True
