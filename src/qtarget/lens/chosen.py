"""Which designs `qtarget lens` was asked for, and which one they are set against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qtarget.config.composing import nearest, options
from qtarget.config.parsers import LENS as USAGE
from qtarget.errors import QTargetError

OPTION = "--against"


@dataclass(frozen=True)
class Against:
    """The design that others are set against. changes: to it alone. label: what it is called, as no other design is."""

    name: str
    changes: tuple[str, ...] = ()
    label: str = ""

    def beside(self, names: Sequence[str], changes: Sequence[str]) -> Against:
        """With a label that tells it from the designs `names`, all with `changes`; those that are the same share it.

        Raises QTargetError where it is the only design there is.
        """
        same = self.changes == tuple(changes)
        if same and set(names) == {self.name}:
            raise QTargetError(
                f"{OPTION} {self.name}: a design has no difference to itself; name another, or change it behind "
                f"{OPTION}: {OPTION} {self.name} target.PART.FIELD=VALUE"
            )
        return replace(self, label=self.name if same or (not self.changes and self.name not in names) else self._own())

    def _own(self) -> str:
        changed = " ".join(change.removeprefix("target").lstrip("./") for change in self.changes)
        return f"{self.name} {changed or 'as shipped'}"


def designed(label: str, changes: Sequence[str], against: Against | None) -> tuple[str, tuple[str, ...]]:
    """The design that a label stands for, and what is changed of it: its name and overrides."""
    if against is not None and label == against.label:
        return against.name, against.changes
    return label, tuple(changes)


def split_against(arguments: Sequence[str]) -> tuple[list[str], Against | None]:
    """The arguments without `--against DESIGN` and the changes to that design, which follow it; and that design."""
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith(f"{OPTION}=") else [word])]
    if OPTION not in words:
        return words, None
    place = words.index(OPTION)
    following = words[place + 1 :]
    if OPTION in following:
        raise QTargetError(f"{OPTION} names one design, and stands twice: {USAGE}")
    name = following[0].removeprefix("target=") if following else ""
    if not name or name.startswith("-"):
        raise QTargetError(f"{OPTION} needs a design, such as {OPTION} sft: {USAGE}")
    if name not in options("target"):
        raise QTargetError(f"{OPTION} names one design; unknown target {name!r}{nearest(name, options('target'))}")
    changes = tuple(word for word in following[1:] if word.startswith(("target.", "target/")))
    return [*words[:place], *(word for word in following[1:] if word not in changes)], Against(name, changes)


def split_run(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """A run's folder, where one stands first, and the other arguments."""
    words = list(arguments)
    if words and not words[0].startswith("-") and (Path(words[0]).is_dir() or _is_path(words[0])):
        return Path(words[0]), words[1:]
    return None, words


def _is_path(word: str) -> bool:
    """Whether a word can only be meant as a folder, be it there or not."""
    return "=" not in word and "/" in word
