"""model=FOLDER, model=FILE.gguf and model=OWNER/NAME: models without a yaml, as options of the group `model`.

Each becomes model=path with its name: an entry of Hydra's ConfigStore, where Hydra looks after all yaml files. So it
composes like any other option, alone, among several of a multirun and in the processes that launchers start.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Quote, QuotedString
from hydra.errors import HydraException

from qtarget.model.gguf_file import is_gguf

GROUP = "model"
AS_PATH = f"/{GROUP}/path@_here_"
HOW_TO_NAME = "A folder is written with a slash where none of that name is here, ./NAME; a model of the hub OWNER/NAME"


def with_named_models(overrides: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """The overrides, in which the values of model=… are options that Hydra has. folders: of yaml files, ours and the
    user's, which go first.
    """
    return [_with_options(text, folders) if text.startswith(f"{GROUP}=") else text for text in overrides]


def _with_options(text: str, folders: Sequence[Path]) -> str:
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException:
        return text  # Hydra itself will say what is wrong
    names = list(_texts(override))
    options = [_registered(name, folders) if _is_model(name) else name for name in names]
    return text if options == names else f"{GROUP}={','.join(map(_quoted, options))}"


def _is_model(name: str) -> bool:
    return "/" in name or is_gguf(name) or Path(name).is_dir()


def _registered(name: str, folders: Sequence[Path]) -> str:
    """The option that stands for a model: its name, as a path, absolute where a yaml file has that name."""
    name = _without_end(name)
    inside = os.path.normpath(name)
    is_taken = inside.startswith("..") or any((folder / GROUP / f"{inside}.yaml").is_file() for folder in folders)
    if is_taken and not name.startswith("."):
        return name
    option = os.path.abspath(name) if is_taken else name if "/" in name else f"./{name}"
    *groups, last = filter(None, (GROUP, *option.split("/")))
    node = {"defaults": [AS_PATH, "_self_"], "name": name}
    ConfigStore.instance().store(name=last, node=node, group="/".join(groups), provider="qtarget")
    return option


def _without_end(name: str) -> str:
    """A name without slashes at its end, of which one alone says that a folder is meant: nofolder/ → ./nofolder."""
    short = name.rstrip("/") or name
    return short if "/" in short or Path(short).is_dir() else f"./{short}"


def _texts(override: Override) -> Iterator[str]:
    """The texts that one value, or a list of choices as A,B, is made of; none of choice(…) and the like."""
    value = override.value()
    values: Sequence[object] = value.list if isinstance(value, ChoiceSweep) and value.simple_form else [value]
    for one in values:
        text = one.text if isinstance(one, QuotedString) else one
        if not isinstance(text, str):
            return
        yield text


def _quoted(text: str) -> str:
    return QuotedString(text, Quote.single).with_quotes()
