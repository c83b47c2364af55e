"""docs/api.md: what `import qtarget` offers, from its docstrings.

python docs/site/api.py > docs/api.md
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import qtarget
from qtarget.trl import QTargetSFTTrainer

HEAD = """# Python

```python
import qtarget

design = qtarget.load_design("dft")
out = qtarget.dense_loss(logits, labels, design)  # labels already shifted, −100 is not supervised
(out.total / len(out.loss)).backward()
```

Shapes: B rows, T tokens of a row, N supervised tokens, D hidden size, V vocabulary. This page is made from the
docstrings, and a test keeps it so.
"""
SECTIONS = {
    "The loss": ("dense_loss", "linear_loss", "Head", "IGNORE"),
    "Designs": ("load_design", "list_designs", "Mixture", "Anchored", "Signed", "Induced", "induced_target"),
    "What a part sees and makes": ("TokenView", "Distribution", "Reference", "Target", "InducedTarget"),
    "In a Trainer": ("hf_loss", "QTargetTrainerMixin", "QTargetSFTTrainer"),
    "Data and verdicts": ("read_rows", "encode", "judge"),
    "Runs": ("command", "read_runs", "draw_sweep"),
    "Errors": ("QTargetError",),
}


def page() -> str:
    return "\n".join([HEAD, *(line for title, names in SECTIONS.items() for line in _section(title, names))])


def _section(title: str, names: tuple[str, ...]) -> Iterator[str]:
    yield f"## {title}\n"
    for name in names:
        yield from _entry(name, QTargetSFTTrainer if name == "QTargetSFTTrainer" else getattr(qtarget, name))


def _entry(name: str, thing: Any) -> Iterator[str]:
    home = "qtarget.trl" if name == "QTargetSFTTrainer" else "qtarget"
    yield f"### `{home}.{name}`\n"
    if not callable(thing):
        yield f"`{thing!r}`\n"
        return
    if not (inspect.isclass(thing) and issubclass(thing, Exception)):
        yield f"```python\n{name}{_signature(thing)}\n```\n"
    yield f"{_text(inspect.getdoc(thing))}\n"
    for method, function in _methods(thing):
        yield f"**`.{method}{_signature(function)}`** {_text(inspect.getdoc(function))}\n"


def _signature(thing: Any) -> str:
    """As it is called: without `self`, and without types, which docstrings say in words."""
    parameters = list(inspect.signature(thing).parameters.values())
    shown = [one.replace(annotation=one.empty) for one in parameters if one.name not in ("self", "cls")]
    return re.sub(
        r"<(?:factory|function .+? at 0x[0-9a-f]+|class .+?)>", "…", str(inspect.Signature(shown)).replace("'", '"')
    )


def _methods(thing: Any) -> Iterator[tuple[str, Any]]:
    """Those of its own that are public and say what they are."""
    own = vars(thing).items() if inspect.isclass(thing) and thing.__module__.startswith("qtarget.math") else ()
    for name, value in own:
        function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if inspect.isfunction(function) and not name.startswith("_") and inspect.getdoc(function):
            yield name, function


def _text(doc: str | None) -> str:
    """A docstring as Markdown: its formulas keep their letters."""
    return re.sub(r"([*<\[\]])", r"\\\1", doc or "")


if __name__ == "__main__":
    print(page(), end="")
