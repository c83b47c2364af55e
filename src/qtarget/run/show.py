"""`qtarget show target=NAME`: a design in words."""

from __future__ import annotations

from collections.abc import Sequence

from qtarget.config.composing import about, compose_target, list_designs, options
from qtarget.config.derived import derived
from qtarget.config.parsers import SHOW as USAGE
from qtarget.config.part_checks import checked_design, checked_target
from qtarget.errors import QTargetError
from qtarget.uncollected import uncollected

SLOTS = {
    "reliance": "reliance γ",
    "residual": "residual π̃",
    "objective": "objective D",
    "weight": "weight w",
    "anchor": "anchor λ",
    "strength": "strength λ",
    "h": "h",
    "normalize": "divided by",
}


def show(arguments: Sequence[str]) -> int:
    """Print each named design, with any part or field changed as on the training command line."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    names, changes, others = split_target(arguments)
    console = Console(markup=False, emoji=False, highlight=False)  # formulas hold brackets and colons
    if others:
        hint = f": did you mean target={others[0]}?" if others[0] in options("target") else ""
        raise QTargetError(f"{USAGE}; got {others[0]!r}{hint}")
    if not names:
        table = Table("target", "formula", "paper", "year", title="target designs")
        for name, facts in list_designs().items():
            table.add_row(*map(Text, (name, facts["formula"], facts["paper"], str(facts["year"]))))
        console.print(table)
        console.print("next: qtarget show target=NAME")
        return 0
    with uncollected():  # torch comes in here
        described = {name: describe(name, changes) for name in names}
    for name, texts in described.items():
        table = Table(title=name, show_header=False)
        for field, text in texts.items():
            table.add_row(Text(field), Text(text))
        console.print(table)
    console.print(f"next: {train_command(names[:1], changes)}", soft_wrap=True)
    return 0


def train_command(names: Sequence[str], changes: Sequence[str]) -> str:
    """The command that trains these designs, with what they need beside what every run has."""
    from qtarget.math.target import needs

    wanted = {role for name in names for role in needs(checked_design(name, changes))}
    teacher = ["reference@references.teacher=frozen", "references.teacher.name=MODEL"] if "teacher" in wanted else []
    many = ["-m"] if len(names) > 1 else []
    return " ".join(["qtarget train", *many, f"target={','.join(names)}", *changes, *teacher])


def describe(name: str, changes: Sequence[str] = ()) -> dict[str, str]:
    """Field → text, for one design."""
    from qtarget.math.target import needs

    target = compose_target(name, changes)
    design, facts, origin = checked_target(name, target), about(name), derived(target)
    of = f" of {origin.name}" if origin else ""
    wanted = ", ".join(f"{role} ({detail})" for role, detail in needs(design).items())
    return {
        **({"derived from": str(origin)} if origin else {}),
        f"formula{of}": facts["formula"],
        **{title: str(getattr(design, slot)) for slot, title in SLOTS.items() if hasattr(design, slot)},
        "needs": wanted or "nothing beside the policy",
        f"paper{of}": f"{facts['paper']} ({facts['year']})",
        "differs": str(facts["differs"]),
        "as run": repr(design),
    }


def split_target(arguments: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """The designs named by target=A,B, the changes to them below `target`, and all other arguments."""
    names: list[str] = []
    changes: list[str] = []
    others: list[str] = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "target":
            names += value.split(",")
        else:
            (changes if key.startswith(("target.", "target/")) else others).append(argument)
    return names, changes, others
