"""Who may import whom: every import points down, and each library has its rooms."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "qtarget"
FLOORS = [
    {"choices", "errors", "units"},
    {"checks", "extras", "files", "forked", "isolated", "measures", "parallel", "progress", "signals", "uncollected"},
    {"cache_layout", "resume_folders", "settings"},
    {"math"},
    {"design"},
    {"data", "model"},
    {"train", "evaluate"},
    {"record"},
    {"plot"},
    {"config"},
    {"compare"},
    {"run", "trainers"},
    {"launch", "lens", "trl"},
    {"sweep"},
    {"cli"},
    {"__main__"},
]
"""Packages and single files by floor, lowest first; those of one floor don't import each other."""
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
LIBRARIES = {
    "lightning": {"data/lightning_data.py", "train", "record/local_trackers.py", "run"},
    "pandas": {"record/run_table.py"},
    "trackio": {"record/local_trackers.py"},
    "transformers": {"model", "evaluate", "data", "run", "trainers"},
    "trl": {"trl.py"},
    "wandb": {"record", "compare/workspace.py"},
    "wandb_workspaces": {"compare/workspace.py"},
    "hydra": {"config", "launch/launcher.py", "launch/multirun.py", "run/stored_config.py", "sweep/points.py"},
    "omegaconf": {"config/composing.py", "config/keys.py", "launch"},
    "matplotlib": {"plot", "lens"},
    "rich": {"progress.py", "evaluate/heldout.py", "compare", "run", "sweep/command.py"},
    "datasets": {"data/sources/loading.py"},
    "peft": {"model/adapting.py"},
    "psutil": {"train/callbacks.py", "launch/slots.py", "sweep/agents.py"},
    "filelock": {"files.py"},
    "optuna": {"sweep"},
    "submitit": {"launch/slurm.py"},
    "ray": {"launch/ray.py"},
    "scipy": {"compare/detectable.py", "evaluate/scores.py", "evaluate/ratios.py", "sweep/space.py"},
    "torchmetrics": {"train/detection.py"},
    "pylatexenc": {"compare/latex.py"},
    "sympy": {"data/verify"},
    "math_verify": {"data/verify"},
    "reasoning_gym": {"data/sources", "data/verify"},
}
"""Library → the packages and files that may import it."""
FILES = sorted(SOURCE.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in _run(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


def _run(node: ast.AST) -> Iterator[ast.AST]:
    """What Python runs of a file: not what stands under TYPE_CHECKING."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _run(child)


def place(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def test_every_package_and_every_file_of_the_root_has_a_floor() -> None:
    assert {room(path) for path in FILES} - {"__init__"} == set(LEVEL)


def test_imports_point_down() -> None:
    for path in FILES:
        mine = room(path)
        for name in imports(path):
            other = name.split(".")[1] if name.startswith("qtarget.") else mine
            is_public = other not in LEVEL  # qtarget.__version__
            is_below = is_public or mine in ("__init__", other) or LEVEL[other] < LEVEL[mine]
            assert is_below, f"{place(path)} imports {name}"


def test_no_file_imports_itself_by_way_of_others() -> None:
    names = {".".join(("qtarget", *path.relative_to(SOURCE).with_suffix("").parts)): path for path in FILES}
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    below = {
        name: [other for other in imports(path) if other in names and not f"{name}.".startswith(f"{other}.")]
        for name, path in names.items()
    }
    finished: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"a circle: {' → '.join((*above, name))}"
        if name not in finished:
            for other in below[name]:
                visit(other, (*above, name))
            finished.add(name)

    for name in names:
        visit(name, ())


def test_libraries_stay_in_their_rooms() -> None:
    for path in FILES:
        for name in imports(path):
            allowed = LIBRARIES.get(name.split(".")[0])
            assert allowed is None or any(place(path) == at or place(path).startswith(f"{at}/") for at in allowed), (
                f"{place(path)}: {name}"
            )


def test_a_name_means_one_thing() -> None:
    """Modules, and public classes, by name. Each package may have a door (command) and a page of its own; a constant
    reliance and a constant weight are both called so in yaml files.
    """
    modules = Counter(path.stem for path in FILES if path.stem != "__init__")
    assert {name for name, count in modules.items() if count > 1} <= {"command", "page"}
    classes = Counter(
        node.name
        for path in FILES
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert {name for name, count in classes.items() if count > 1} <= {"Constant"}


def test_math_needs_torch_and_nothing_else() -> None:
    standard = {
        "__future__",
        "collections",
        "contextlib",
        "dataclasses",
        "functools",
        "math",
        "time",
        "typing",
        "warnings",
    }
    for path in (SOURCE / "math").glob("*.py"):
        assert {name.split(".")[0] for name in imports(path)} <= standard | {"torch", "qtarget"}
