"""docs/configuration.md: every key of a run, from the dataclasses that read it.

python -m qtarget.config.manual > docs/configuration.md
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qtarget.config.references import KINDS, KINDS_OF
from qtarget.config.run_config import NODES, RunConfig
from qtarget.config.settings import Node, as_yaml

HEAD = """# Configuration

Every key of `qtarget train`, set as `KEY=VALUE` on the command line or in a yaml of your own. `qtarget train --cfg job`
shows the values of a run. A key that is misspelt, and a value outside what is allowed, are refused before anything is
read. Keys of your own, which others refer to as `${KEY}`, stand at the top level:
`+base_lr=1e-4 'optim.lr=${base_lr}'`.

The design (`target.…`), the data (`data.…`), the optimizer (`optim.…`) and the tracker (`tracker.…`) are groups: each
option is a class with fields of its own, which its yaml in `conf/` lists. See [designs](designs.md),
[data](guide.md#data) and [W&B](scaling.md#wb).
"""


def manual() -> str:
    """The page, in Markdown."""
    nodes = [line for kind in NODES for line in _section(f"`{kind.NODE_KEY}`", kind)]
    return "\n".join([HEAD, *_section("The run", RunConfig), *nodes, *_references()])


def keys_and_meanings() -> str:
    """The same keys for a terminal: what each means, and what it may be."""
    nodes: list[type[Node]] = [RunConfig, *NODES]
    keys = [
        (f"{_name(node, setting.key)}={_value(setting.default)}", setting)
        for node in nodes
        for setting in node.settings()
    ]
    lines = [f"{key}  ({setting.kind.text})  {setting.about}" for key, setting in keys]
    return "\n".join(["== Keys ==", "KEY=DEFAULT  (what is allowed)  what it means", "", *lines])


def _references() -> Iterator[str]:
    yield "## `references.prior`, `references.teacher`, `references.old`\n"
    yield "A kind is chosen with `reference@references.ROLE=KIND`.\n"
    for kind, node in KINDS.items():
        roles = ", ".join(role for role, kinds in KINDS_OF.items() if kind in kinds)
        yield f"### `{kind}` ({roles})\n"
        yield from _table(node)


def _section(title: str, node: type[Node]) -> Iterator[str]:
    yield f"## {title}\n"
    yield from _table(node)


def _table(node: type[Node]) -> Iterator[str]:
    yield f"{(node.__doc__ or '').splitlines()[0]}\n"
    yield "| key | default | allowed | |"
    yield "|---|---|---|---|"
    for setting in node.settings():
        yield f"| `{_name(node, setting.key)}` | {_shown(setting.default)} | {setting.kind.text} | {setting.about} |"
    yield ""


def _name(node: type[Node], key: str) -> str:
    return f"{node.NODE_KEY}.{key}" if node.NODE_KEY else key


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "–"
    return "must be set" if value == "???" else f"`{as_yaml(value)}`"


def _value(default: Any) -> str:
    return "…" if isinstance(default, dict) or default == "???" else as_yaml(default)


if __name__ == "__main__":
    print(manual(), end="")
