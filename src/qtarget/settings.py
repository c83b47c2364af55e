"""Fields of a configuration: what each means, what it may be, and the check that says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Protocol, Self

from qtarget import checks
from qtarget.errors import QTargetError


class Kind(Protocol):
    """What a value may be. text: in words, for the manual."""

    @property
    def text(self) -> str: ...

    def check(self, name: str, value: Any) -> None:
        """Raise QTargetError, with the key's name, for any other value."""


@dataclass(frozen=True)
class Whole:
    """A whole number of at least `least`, and at most `most` where there is one."""

    least: int = 0
    most: int | None = None

    @property
    def text(self) -> str:
        return f"whole number ≥ {self.least}" + ("" if self.most is None else f" and ≤ {self.most}")

    def check(self, name: str, value: Any) -> None:
        checks.whole(name, value, self.least, self.most)


@dataclass(frozen=True)
class Number:
    """A finite number in [low, high]."""

    low: float = 0.0
    high: float = float("inf")

    @property
    def text(self) -> str:
        return f"number in {checks.interval(self.low, self.high)}"

    def check(self, name: str, value: Any) -> None:
        checks.number(name, value, self.low, self.high)


@dataclass(frozen=True)
class RelativeWeight:
    """A finite number above 0."""

    text: str = "number above 0"

    def check(self, name: str, value: Any) -> None:
        checks.weight(name, value)


@dataclass(frozen=True)
class Share:
    """A share of a whole that leaves something: a number in [0, 1)."""

    text: str = "number in [0, 1)"

    def check(self, name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise QTargetError(f"{name} must lie in [0, 1), got {value!r}")


@dataclass(frozen=True)
class Choice:
    """One of a few values."""

    legal: tuple[Any, ...]

    @property
    def text(self) -> str:
        return ", ".join(map(as_yaml, self.legal))

    def check(self, name: str, value: Any) -> None:
        checks.choice(name, value, self.legal)


FLAG = Choice((True, False))


@dataclass(frozen=True)
class Text:
    """Text; also a number or a date where it is meant as a name."""

    text: str = "text"

    def check(self, name: str, value: Any) -> None:
        if isinstance(value, Mapping | list | bool):
            raise QTargetError(f"{name} must be text, got {value!r}")


@dataclass(frozen=True)
class Listed:
    """A list of values of one kind. count: how many; None: any number of them."""

    kind: Kind
    count: int | None = None

    @property
    def text(self) -> str:
        return f"list{f' of {self.count}' if self.count else ''}, each: {self.kind.text}"

    def check(self, name: str, value: Any) -> None:
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        if not is_list or self.count not in (None, len(value)):
            raise QTargetError(f"{name} must be a {self.text}, got {value!r}: write {name}=[A,B]")
        for place, one in enumerate(value):
            self.kind.check(f"{name}[{place}]", one)


@dataclass(frozen=True)
class ByName:
    """A mapping from names to values of one kind. example: how one is written."""

    kind: Kind
    example: str = "{NAME: VALUE}"

    @property
    def text(self) -> str:
        return f"{self.example}, {self.kind.text}"

    def check(self, name: str, value: Any) -> None:
        if not isinstance(value, Mapping):
            raise QTargetError(f"{name} must be {self.example}, got {value!r}")
        for key, one in value.items():
            self.kind.check(f"{name}.{key}", one)


@dataclass(frozen=True)
class Either:
    """A value of one of several kinds."""

    kinds: tuple[Kind, ...]

    @property
    def text(self) -> str:
        return " or ".join(kind.text for kind in self.kinds)

    def check(self, name: str, value: Any) -> None:
        for kind in self.kinds:
            try:
                return kind.check(name, value)
            except QTargetError:
                continue
        raise QTargetError(f"{name} must be {self.text}, got {value!r}")


@dataclass(frozen=True)
class Part:
    """What is chosen by a group of its own, or built by its `_target_`."""

    text: str

    def check(self, name: str, value: Any) -> None:
        """Where it is used."""


@dataclass(frozen=True)
class Option:
    """A part that a group has options for. group: as the command line names it, data/noise; behind an @ the key."""

    group: str
    optional: bool = False

    @property
    def text(self) -> str:
        return f"a part, {self.group}=OPTION{', or null' if self.optional else ''}"

    def check(self, name: str, value: Any) -> None:
        is_left_out = value is None and self.optional
        if not is_left_out and isinstance(value, str | int | float | list | None):
            (group, at, _), text = self.group.partition("@"), as_yaml(value)
            place = f"@{name}" if at else ""
            raise QTargetError(f"{name}={text} sets a value, not an option: write {group}{place}={text}")


@dataclass(frozen=True)
class Nullable:
    """The same, or null."""

    kind: Kind

    @property
    def text(self) -> str:
        return f"{self.kind.text}, or null"

    def check(self, name: str, value: Any) -> None:
        if value is not None:
            self.kind.check(name, value)


@dataclass(frozen=True)
class Setting:
    """What a key of the configuration is. about: in one line, with its unit."""

    key: str
    kind: Kind
    about: str
    default: Any


def setting(default: Any, kind: Kind, about: str) -> Any:
    """A field of a configuration. default: MISSING (of dataclasses) where it must be set; a class is called."""
    metadata = {"kind": kind, "about": about}
    if isinstance(default, type | dict | list):
        return field(default_factory=default if callable(default) else default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def settings_of(part: type) -> Iterator[Setting]:
    """The fields of a class that are settings, in order; one that is no dataclass has none."""
    for one in fields(part) if is_dataclass(part) else ():
        if "kind" in one.metadata:
            default = one.default_factory() if callable(one.default_factory) else one.default
            yield Setting(one.name, one.metadata["kind"], one.metadata["about"], default)


def check_values(place: str, part: type, values: Mapping[str, Any]) -> None:
    """Raise QTargetError for a value that a setting of a dataclass can't have. place: the dotted key of the values."""
    for one in settings_of(part):
        if one.key in values:
            one.kind.check(f"{place}.{one.key}".lstrip("."), values[one.key])


class Checked:
    """A dataclass whose settings are checked when it is made."""

    NODE_KEY: ClassVar[str] = ""
    """Its dotted key, for messages."""

    def __post_init__(self) -> None:
        check_values(self.node_key, type(self), {one.key: getattr(self, one.key) for one in settings_of(type(self))})

    @property
    def node_key(self) -> str:
        """Its dotted key; of a reference it depends on the role."""
        return self.NODE_KEY


@dataclass(frozen=True)
class Node(Checked):
    """A node of the configuration that `RunConfig` holds as a dataclass."""

    @classmethod
    def settings(cls) -> Iterator[Setting]:
        """Its fields, in order."""
        return settings_of(cls)

    @classmethod
    def read(cls, node: Any, **more: Any) -> Self:
        """From a composed node; keys that it lacks, as records of earlier builds do, have their defaults.

        Raises QTargetError for keys that there are none of, and for a text or a number in a node's place.
        """
        place = f"references.{more['role']}" if "role" in more else cls.NODE_KEY
        if not isinstance(node, Mapping):
            raise QTargetError(f"{place}={as_yaml(node)} sets a value, and {place} has fields: set {place}.FIELD=VALUE")
        known = [one.key for one in cls.settings()]
        for name in node:
            if name not in known:
                raise QTargetError(
                    f"unknown key '{place}.{name}'. Allowed: {', '.join(sorted(known))}. A value of your own that "
                    "others refer to stands at the top level"
                )
        return cls(**node, **more)

    def container(self) -> dict[str, Any]:
        """As plain data."""
        return {one.key: getattr(self, one.key) for one in self.settings()}


def as_yaml(value: Any) -> str:
    """A value as it is written on the command line: null, true, 0.4, [0.9,0.95]."""
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(as_yaml, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
