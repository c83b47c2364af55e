"""Keys whose value is a name: text as the user typed it, whatever it looks like.

Hydra 1.3 reads `name=2026_11_27` as the number 20261127, `1e5` as 100000.0, `true` as a truth value, and fails on
`target=7`. On a command line such texts are put in quotes before Hydra reads them. What a yaml file holds has been read
by then, and is refused where it is no text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qtarget.errors import QTargetError


def nodes(node: Mapping[str, Any], dotted: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, mapping): the node itself, and those below it. Keys may be removed from them meanwhile."""
    yield dotted, node
    for key, value in list(node.items()):
        if isinstance(value, Mapping):
            yield from nodes(value, f"{dotted}.{key}".lstrip("."))


NO_NOISE = {"_target_": "qtarget.data.noise.NoNoise"}
"""The node of data/noise=none."""
GROUPS = ("target", "data", "model", "optim", "reference", "trainer", "eval", "tracker", "experiment")
"""Groups of the configuration, of which a key picks an option by its name."""
TYPED = re.compile(
    r"experiment_name|name|role|output_dir|tracker\.(\w+\.)?(project|entity|tags)|model\.name|references\.\w+\.(name|folder)"
    r"|(data|eval)\..*\.(path|revision|name|task|marker|train|heldout|messages)|data\.heldout_source"
    r"|(data|eval)\..*\.(prompt|completion|answer|key|hint|system)|(data|eval)\..*\.files\.\w+|target\.\w+\.name"
    r"|hydra\.(run|sweep)\.(dir|subdir)|hydra\.job\.name|hydra\.launcher\.ray\.init\.address"
    r"|hydra\.launcher\.(name|partition|qos|account|constraint|exclude|comment|gres|additional_parameters\.\w+)"
)
"""Names by their dotted keys."""
TEMPLATE = re.compile(r"(data|eval)\..*\.(prompt|completion|answer|key|hint)")
"""Of these, those that may name columns in braces."""
NEEDED = ("experiment_name", "output_dir")
"""Those that can't be null."""
LABELS = ("experiment_name", "name")
OF_A_RUN = ("experiment_name", "name", "role", "output_dir")
OF_A_SOURCE = (
    "path",
    "name",
    "revision",
    "task",
    "train",
    "heldout",
    "messages",
    "prompt",
    "completion",
    "answer",
    "key",
    "system",
    "files",
)
"""Fields of qtarget's own sources of data that are text, or null."""
FILES = ("path", "files")
"""Those that may name several."""
PART = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[\[\](),]|(?:\\.|[^\[\](),'"\\])+|.""", re.DOTALL)
"""What a value is made of: quoted text, a bracket, a comma, or what lies between them."""

UNQUOTED = re.compile(r"""[\w/+.$%*@?|:\s-]*$|.*[\\{}'"]|[\[\](),]""", re.ASCII)
"""Parts that Hydra reads as they are, or that say themselves how they are to be read."""


def as_typed(arguments: Sequence[str]) -> list[str]:
    """A command line on which Hydra reads names as the text that was typed.

    >>> as_typed(["name=1e5,sft", "tracker.tags=[1,a]", "seed=1_0", "name=null"])
    ["name='1e5',sft", "tracker.tags=['1',a]", 'seed=1_0', 'name=null']
    >>> as_typed(["tracker=[wandb,csv]"])
    ['tracker=several', '+tracker@tracker.wandb=wandb', '+tracker@tracker.csv=csv']
    """
    return [_as_typed(single) for argument in arguments for single in _one_tracker_each(argument)]


def _one_tracker_each(argument: str) -> list[str]:
    """tracker=[A,B] as what composes it: Hydra would merge the fields of both into one node."""
    listed = re.fullmatch(r"tracker=\[([\w\s,]+)\]", argument)
    if not listed:
        return [argument]
    names = [name.strip() for name in listed[1].split(",")]
    return ["tracker=several", *(f"+tracker@tracker.{name}={name}" for name in names)]


def _as_typed(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if TEMPLATE.fullmatch(key.lstrip("+")) and _names_columns(value):
        return f"{key}={in_quotes(value)}"
    if not equals or not is_name(key.lstrip("+~")) or re.match(r"\s*(\w+\s*\(|\{)", value):
        return argument
    return f"{key}={''.join(map(_in_quotes, PART.findall(value)))}"


def is_name(key: str) -> bool:
    """Whether a key of an override has a name for its value: a field that holds one, or the choice of an option."""
    group, package, _ = key.partition("@")
    return bool(package or "/" in group or group in GROUPS or TYPED.fullmatch(key))


def _names_columns(value: str) -> bool:
    """Whether it is a template that Hydra would read as a mapping; quoted ones, and references to keys, say so."""
    return "{" in value and "${" not in value and value.lstrip()[:1] not in ("'", '"')


def in_quotes(text: str) -> str:
    """As Hydra reads it back: 'it\\'s'."""
    from hydra.core.override_parser.types import Quote, QuotedString  # records are compared without it

    return QuotedString(text, Quote.single).with_quotes()


def _in_quotes(part: str) -> str:
    """A part of a value that would be a number or a truth value, or that Hydra can't read without, in quotes; null
    stays null.
    """
    text = part.strip()
    return part.replace(text, f"'{text}'") if _is_typed_otherwise(text) or not UNQUOTED.match(text) else part


def _is_typed_otherwise(text: str) -> bool:
    if text.lower() in ("true", "false"):
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True


# What a configuration holds


def check_names(config: Mapping[str, Any], referring: Sequence[str] = ()) -> None:
    """Raise QTargetError for a name that is no text. config: resolved, as plain data. referring: keys that name another
    key for their value, which may be a number.
    """
    for key, value in _names(config):
        if key not in referring and not isinstance(value, str) and (value is not None or key in NEEDED):
            raise QTargetError(
                f"{key} is text, and {value!r} is none: write it in quotes, {key}: '…' in a yaml file, {key}=\"'…'\" "
                "on the command line"
            )
    for dotted, tracker in our_trackers(config):
        tags = tracker.get("tags", [])
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise QTargetError(f"{dotted}.tags is a list of texts, got {tags!r}: write {dotted}.tags=[NAME,'2026']")


def our_trackers(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(dotted key, node) of the tracker, and of each of several, that is qtarget's."""
    tracker = config.get("tracker") or {}
    if not is_ours(tracker):
        return
    yield "tracker", tracker
    for name, node in tracker.items():
        if isinstance(node, Mapping) and is_ours(node):
            yield f"tracker.{name}", node


def model_nodes(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of the policy and of each reference of a composed configuration, as plain data.

    A value in the place of one, or of all references, is refused in words when it is read.
    """
    references = config.get("references")
    nodes = (config.get("model"), *(references.values() if isinstance(references, Mapping) else ()))
    return [node for node in nodes if isinstance(node, dict)]


def is_ours(node: Mapping[str, Any]) -> bool:
    """Whether a part is one of qtarget's; what the fields of a class of the user's are is that class's to say."""
    return str(node.get("_target_", "qtarget.")).startswith("qtarget.")


def _names(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of the names in a configuration."""
    fields = {"": OF_A_RUN, "model": ("name",)}
    fields |= dict.fromkeys((dotted for dotted, _ in our_trackers(config)), ("project", "entity"))
    for dotted, node in nodes(config):
        of_node = fields.get(dotted, ())
        if re.fullmatch(r"references\.\w+", dotted):
            of_node = ("name", "folder")
        if str(node.get("_target_")).startswith("qtarget.data.sources."):
            of_node = OF_A_SOURCE
        for name in of_node:
            if name in node:
                key = f"{dotted}.{name}".lstrip(".")
                yield from _files(key, node[name]) if name in FILES else ((key, node[name]),)


def _files(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Each, as of {train: FILE, heldout: [FILE, FILE]}."""
    if isinstance(value, Mapping):
        for name, entry in value.items():
            yield from _files(f"{key}.{name}", entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _files(key, entry)
    else:
        yield key, value


def as_hashed(name: Any) -> Any:
    """A name as it entered the identity of runs when Hydra still made numbers of such texts, where it prints alike."""
    for kind in (int, float):
        try:
            if isinstance(name, str) and str(kind(name)) == name:
                return kind(name)
        except ValueError:
            continue
    return name
