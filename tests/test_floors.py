"""Who may import whom: every import points down."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "qtarget"
# Rooms by floor, lowest first; rooms of one floor don't import each other.
FLOORS = [{"errors"}, {"math"}, {"design"}, {"data", "model"}, {"train", "evaluate"}, {"track"}, {"app"}]
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
ALLOWED = {
    "lightning": {"data/module.py", "train", "app"},
    "transformers": {
        "model",
        "evaluate",
        "data/chat.py",
        "data/template.py",
        "data/tokenise.py",
        "data/module.py",
        "app/compose.py",
        "app/train.py",
    },
    "wandb": {"track"},
    "wandb_workspaces": {"track"},
    "hydra": {"app"},
    "omegaconf": {"app"},
}
FILES = sorted(path for path in SOURCE.rglob("*.py") if path.parent != SOURCE)


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    room = path.relative_to(SOURCE).parts[0]
    for name in imports(path):
        if name.startswith("qtarget."):
            other = name.split(".")[1]
            assert other == room or LEVEL.get(other, -1) < LEVEL[room], f"{room} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_libraries_stay_in_their_rooms(path: Path) -> None:
    place = str(path.relative_to(SOURCE))
    for name in imports(path):
        allowed = ALLOWED.get(name.split(".")[0])
        assert allowed is None or any(place == room or place.startswith(f"{room}/") for room in allowed), (
            f"{place}: {name}"
        )


def test_math_needs_torch_and_nothing_else() -> None:
    standard = {"__future__", "collections", "dataclasses", "functools", "math", "typing", "warnings"}
    for path in (SOURCE / "math").glob("*.py"):
        assert {name.split(".")[0] for name in imports(path)} <= standard | {"torch", "qtarget"}
