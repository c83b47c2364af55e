"""Overrides that Hydra's grammar can't read, and how they are written."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from qtarget.config.names import as_typed, in_quotes


def unreadable(overrides: Iterable[str]) -> str | None:
    """What is wrong with the first override that can't be read, and how its value is quoted; None where all can."""
    for text in as_typed(list(overrides)):
        if why := _problem(text):
            return _message(text, why)
    return None


def _message(text: str, why: str) -> str:
    key, _, value = text.partition("=")
    if _problem(f"{key}=x"):
        return f"{text}: {key!r} is no key or group, which hold ASCII letters, digits and _ . / @"
    way = shlex.quote(f"{key}={in_quotes(value)}")
    return (
        f"{text} can't be read: {why}. Lists are [A,B], mappings {{KEY: VALUE}}; a text with other signs than ASCII "
        f"letters, digits, spaces and - _ . : / + % @ is put in quotes of its own: {way}"
    )


def _problem(override: str) -> str:
    """Why it can't be read; empty where it can."""
    try:
        OverridesParser.create().parse_override(override)
    except HydraException as error:
        return str(error).strip()
    return ""
