"""`qtarget dashboard`: a workspace and a report at W&B that compare the target designs of a project."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from importlib.util import find_spec

from qtarget.config.parsers import dashboard_parser
from qtarget.errors import QTargetError

MOST_CHARACTERS = 128
NEXT = "next: open them; runs that come later appear by themselves. The same command again saves new ones beside these"


def dashboard(arguments: Sequence[str]) -> int:
    """Save both and print where they are."""
    options = dashboard_parser().parse_args(arguments)
    if find_spec("wandb_workspaces") is None:
        raise QTargetError("`qtarget dashboard` needs wandb-workspaces: pip install 'qtarget[dashboard]'")
    _check_name(options.name)
    from qtarget.compare import workspace as shown  # needs wandb-workspaces

    project = shown.find_project(options.project)
    print(f"{options.name}, of the runs in {project.path}; axes of the sweeps: {', '.join(project.keys)}")
    for kind, make in shown.KINDS.items():
        print(f"  {kind:<10} {shown.save(make(project, options.name), project)}")
    print(NEXT)
    return 0


def _check_name(name: str) -> None:
    """What wandb-workspaces would refuse once it has begun."""
    symbols = [letter for letter in name if unicodedata.category(letter)[0] == "S"]
    if not name.strip() or len(name) > MOST_CHARACTERS or symbols:
        raise QTargetError(
            f"--name is a text of 1 to {MOST_CHARACTERS} characters without symbols or emoji, got {name!r}"
        )
