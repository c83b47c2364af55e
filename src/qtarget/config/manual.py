"""docs/configuration.md: every key of a run, from the dataclasses that read it and the options of conf/.

python -m qtarget.config.manual > docs/configuration.md
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import yaml

from qtarget.config.composing import conf_dir, located
from qtarget.config.launchers import LAUNCHER, LAUNCHERS
from qtarget.config.references import KINDS, KINDS_OF
from qtarget.config.run_config import NODES, RunConfig
from qtarget.settings import Node, Setting, as_yaml, settings_of

HEAD = """# Configuration

Every key of `qtarget train`. This page is made from the code that reads the keys, and a test keeps it so.

```sh
qtarget train trainer.max_steps=200                  # a key
qtarget train target=dft                             # an option of a group: a file of conf/target
qtarget train target/residual=uniform                # an option of a part
qtarget train target=dft --cfg job                   # prints every key of a run, with its value
qtarget train --help                                 # the same keys in the terminal
qtarget train +base_lr=1e-4 'optim.lr=${base_lr}'    # a key of your own at the top level, which others refer to
```

A key that is misspelt is refused. So is a value outside what is allowed. Both come before anything is read.
"""
GROUPS = (
    ("target", "target", "How a design puts its parts together", "One option a design: see [designs](designs.md)."),
    ("target/reliance", "target.reliance", "Reliance γ", "The share of the target that stays on the observed token."),
    ("target/residual", "target.residual", "Residual π̃", "Where the rest of the mass goes."),
    ("target/weight", "target.weight", "Weight w", "The step size of a token."),
    (
        "target/objective",
        "target.objective",
        "Objective",
        "A loss that is differentiated, of designs such as `kd_jsd`.",
    ),
    ("data", "data", "Data", "Which rows, and how many. One option a data set: [rows](data.md), [tasks](tasks.md)."),
    ("data/source", "data.source", "Source", "Where rows come from. An option's own values: `--cfg job`."),
    ("data/noise", "data.noise", "Noise", "What is made wrong in the training rows."),
    ("optim", "optim", "Optimizer", "AdamW, its learning rate or the length of its steps."),
    ("model/adapter", "model.adapter", "Adapter", "What is trained in place of the weights."),
    ("reference/flaw", "references.ROLE.flaw", "Flaw of a reference", "`reference/flaw@references.ROLE.flaw=OPTION`."),
    ("tracker", "tracker", "Tracker", "Who else is sent the record: see [W&B](scaling.md#wb)."),
)
"""Group, place of its keys, title, and what it is. Options of one class share a table."""


def manual() -> str:
    """The page, in Markdown."""
    return "\n".join([HEAD, *_table("The run", RunConfig), *_nodes(), *_references(), *_groups(), *_launchers()])


def keys_and_meanings() -> str:
    """The same keys for a terminal: what each means, and what it may be."""
    lines = list(dict.fromkeys(f"{key}={_value(one)}  ({one.kind.text})  {one.about}" for key, one in every_key()))
    return "\n".join(["== Keys ==", "KEY=DEFAULT  (what is allowed)  what it means", "", *lines])


def every_key() -> Iterator[tuple[str, Setting]]:
    """Dotted key → what it is; a key that several classes of a group have comes once for each."""
    nodes: list[type[Node]] = [RunConfig, *NODES]
    places = [(node.NODE_KEY, node) for node in nodes]
    places += [("references.ROLE", kind) for kind in KINDS.values()]
    parts = [(place, part) for group, place, *_ in GROUPS for part in classes(group)]
    parts += [(part.NODE_KEY, part) for settings in LAUNCHERS.values() for part in settings]  # type: ignore[attr-defined]
    for place, part in [*places, *parts]:
        yield from ((f"{place}.{one.key}".lstrip("."), one) for one in settings_of(part))


def classes(group: str) -> dict[type, dict[str, dict[str, Any]]]:
    """Class of a group → its options, each with the values of its yaml."""
    made: dict[type, dict[str, dict[str, Any]]] = {}
    for path in sorted((conf_dir() / group).glob("*.yaml")):
        values = _read(path)
        if "_target_" in values:
            made.setdefault(located(group, values.pop("_target_")), {})[path.stem] = values
    return made


def _read(path: Path) -> dict[str, Any]:
    """A yaml of conf/ on top of those that its defaults name for the same place."""
    own = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    values: dict[str, Any] = {}
    for base in own.pop("defaults", []):
        if isinstance(base, Mapping):
            ((key, name),) = base.items()
            if key == "common@_here_":
                values |= _read(path.parent / "common" / f"{name}.yaml")
        elif base != "_self_":
            values |= _read(path.parent / f"{base}.yaml")
    return values | own


def _nodes() -> Iterator[str]:
    for kind in NODES:
        yield from _table(f"`{kind.NODE_KEY}`", kind)


def _references() -> Iterator[str]:
    yield "## `references.prior`, `references.teacher`, `references.old`\n"
    yield "A kind is chosen with `reference@references.ROLE=KIND`.\n"
    for kind, node in KINDS.items():
        roles = ", ".join(role for role, kinds in KINDS_OF.items() if kind in kinds)
        yield from _rows(f"### `{kind}` ({roles})", node, "")


def _groups() -> Iterator[str]:
    for group, place, title, about in GROUPS:
        yield f"## {title}: `{group}=OPTION`\n"
        yield f"{about}\n"
        for part, options in classes(group).items():
            yield from _part(part, place, options)


def _part(part: type, place: str, options: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A class of a group: its options, with what they set otherwise than the class, and its keys."""
    defaults = {one.key: one.default for one in settings_of(part)}
    differing = [_option(name, values, defaults) for name, values in options.items()]
    yield f"### {', '.join(f'`{name}`' for name in options)}\n"
    yield f"{_first_line(part)}\n"
    if len(options) > 1 and place.startswith("target.") and (shown := [one for one in differing if one]):
        yield f"{'; '.join(shown)}.\n"
    if defaults:
        yield from _lines(part, place)


def _option(name: str, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    changed = [f"{key}={as_yaml(value)}" for key, value in values.items() if defaults.get(key) != value]
    return f"`{name}`: {', '.join(changed)}" if changed else ""


def _launchers() -> Iterator[str]:
    yield "## Launchers of multiruns: `hydra/launcher=OPTION`\n"
    yield "Where the jobs of `qtarget train -m` run: see [many runs](scaling.md). Without one, one after the other.\n"
    for name, settings in LAUNCHERS.items():
        for part in settings:
            place = part.NODE_KEY  # type: ignore[attr-defined]
            title = f"### `{name}`" if place == LAUNCHER else f"### `{name}`: `{place}`"
            yield from _rows(title, part, place)


def _table(title: str, node: type[Node]) -> Iterator[str]:
    yield from _rows(f"## {title}", node, node.NODE_KEY)


def _rows(title: str, part: type, place: str) -> Iterator[str]:
    yield f"{title}\n"
    yield f"{_first_line(part)}\n"
    yield from _lines(part, place)


def _lines(part: type, place: str) -> Iterator[str]:
    yield "| key | default | allowed | |"
    yield "|---|---|---|---|"
    for one in settings_of(part):
        cells = (f"`{place}.{one.key}`".replace("`.", "`"), _shown(one), one.kind.text, one.about)
        yield f"| {' | '.join(cell.replace('|', '∣') for cell in cells)} |"
    yield ""


def _first_line(part: type) -> str:
    """What a class is: the first line of its docstring, as Markdown shows it."""
    return (part.__doc__ or "").strip().splitlines()[0].replace("*", "\\*")


def _shown(one: Setting) -> str:
    """Its default."""
    value = one.default
    if isinstance(value, Mapping) or _is_part(value):
        return "–"
    return (
        "must be set" if value is MISSING or value == "???" else f"`{as_yaml(value)}`".replace("\n", "\\n")
    )  # a cell is a line


def _value(one: Setting) -> str:
    return "…" if isinstance(one.default, Mapping) or one.default in (MISSING, "???") else as_yaml(one.default)


def _is_part(value: Any) -> bool:
    """Whether it is made by a class of qtarget."""
    return type(value).__module__.startswith("qtarget.")


if __name__ == "__main__":
    print(manual(), end="")
