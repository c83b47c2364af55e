"""Fields of a configuration: what each means, what it may be, and the check that says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
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
    """A whole number of at least `least`."""

    least: int = 0

    @property
    def text(self) -> str:
        return f"whole number ≥ {self.least}"

    def check(self, name: str, value: Any) -> None:
        checks.whole(name, value, self.least)


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
class Part:
    """What is chosen by a group of its own, or built by its `_target_`."""

    text: str

    def check(self, name: str, value: Any) -> None:
        """Where it is used."""


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
    """A field of a `Node`."""
    metadata = {"kind": kind, "about": about}
    if isinstance(default, dict | list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Node:
    """A node of the configuration, its values checked when it is made."""

    NODE_KEY: ClassVar[str] = ""
    """Its dotted key."""

    def __post_init__(self) -> None:
        for setting in self.settings():
            setting.kind.check(f"{self.node_key}.{setting.key}".lstrip("."), getattr(self, setting.key))

    @property
    def node_key(self) -> str:
        """Its dotted key; of a reference it depends on the role."""
        return self.NODE_KEY

    @classmethod
    def settings(cls) -> Iterator[Setting]:
        """Its fields, in order."""
        for declared in fields(cls):
            if "kind" in declared.metadata:
                default = declared.default_factory() if callable(declared.default_factory) else declared.default
                yield Setting(declared.name, declared.metadata["kind"], declared.metadata["about"], default)

    @classmethod
    def read(cls, node: Any, **more: Any) -> Self:
        """From a composed node; keys that it lacks, as records of earlier builds do, have their defaults.

        Raises QTargetError for keys that there are none of, and for a text or a number in a node's place.
        """
        key = f"references.{more['role']}" if "role" in more else cls.NODE_KEY
        if not isinstance(node, Mapping):
            raise QTargetError(f"{key}={as_yaml(node)} sets a value, and {key} has fields: set {key}.FIELD=VALUE")
        known = [setting.key for setting in cls.settings()]
        for name in node:
            if name not in known:
                raise QTargetError(
                    f"unknown key '{key}.{name}'. Allowed: {', '.join(sorted(known))}. A value of your own that "
                    "others refer to stands at the top level"
                )
        return cls(**node, **more)

    def container(self) -> dict[str, Any]:
        """As plain data."""
        return {setting.key: getattr(self, setting.key) for setting in self.settings()}


def as_yaml(value: Any) -> str:
    """A value as it is written on the command line: null, true, 0.4."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
