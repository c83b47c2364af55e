"""`qtarget show target=NAME`: a design in words."""

from __future__ import annotations

from collections.abc import Sequence

from qtarget.app.configs import about, compose_target, instantiate_design, list_designs
from qtarget.errors import QTargetError

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

    names, changes, others = split_target(arguments)
    if others:
        raise QTargetError(f"show takes target=NAME, target/PART=OPTION and target.PART.FIELD=VALUE, got {others[0]!r}")
    console = Console()
    if not names:
        table = Table("target", "formula", "paper", "year", title="target designs")
        for name, told in list_designs().items():
            table.add_row(name, told["formula"], told["paper"], str(told["year"]))
        console.print(table)
        console.print("next: qtarget show target=NAME")
        return 0
    for name in names:
        table = Table(title=name, show_header=False)
        for field, text in describe(name, changes).items():
            table.add_row(field, text)
        console.print(table)
    console.print(f"next: qtarget train target={' '.join([names[0], *changes])}", markup=False, highlight=False)
    return 0


def describe(name: str, changes: Sequence[str] = ()) -> dict[str, str]:
    """Field → text, for one design."""
    from qtarget.math.target import needs

    design, told = instantiate_design(compose_target(name, changes)), about(name)
    wanted = ", ".join(f"{role} ({detail})" for role, detail in needs(design).items())
    return {
        "formula" if not changes else "formula as shipped": told["formula"],
        **{title: str(getattr(design, slot)) for slot, title in SLOTS.items() if hasattr(design, slot)},
        "needs": wanted or "nothing beside the policy",
        "paper": f"{told['paper']} ({told['year']})",
        "differs": str(told["differs"]),
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
