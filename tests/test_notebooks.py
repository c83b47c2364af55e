"""Notebooks are kept without outputs, and their pages say what they say; `make test-all` runs them with nbmake."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

import qtarget
from qtarget.errors import QTargetError

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def rendering() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render", ROOT / "notebooks/render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["01_targets", "02_compare_designs", "03_sweep"]


@each
def test_notebooks_are_kept_without_outputs(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


@each
def test_they_import_nothing_of_qtarget_but_its_public_names(path: Path) -> None:
    source = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    assert not re.search(r"(from|import) qtarget\.", source)
    assert set(re.findall(r"\bqtarget\.(\w+)", source)) <= set(qtarget.__all__)


@each
def test_pages_are_those_of_the_notebooks(path: Path, rendering: ModuleType) -> None:
    """Every cell, in order; and pictures are there."""
    page = (rendering.PAGES / f"{path.stem}.md").read_text()
    place = 0
    for cell in nbformat.read(path, as_version=4).cells:
        shown = cell.source if cell.cell_type == "markdown" else rendering.code(cell.source)
        assert page.find(shown, place) >= place, f"run `make notebooks`: {path.name} has changed: {shown[:60]!r}"
        place = page.find(shown, place) + len(shown)
    pictures = re.findall(r"!\[\]\((.*?)\)", page)
    assert pictures
    for picture in pictures:
        assert (rendering.PAGES / picture).stat().st_size < 200_000
    assert "/tmp" not in page
    assert "\x1b" not in page


def test_running_leaves_nothing_behind_a_strip(tmp_path: Path, rendering: ModuleType) -> None:
    path = tmp_path / "run.ipynb"
    told = nbformat.read(NOTEBOOKS[0], as_version=4)
    cell = next(cell for cell in told.cells if cell.cell_type == "code")
    cell.outputs, cell.execution_count = [nbformat.v4.new_output("stream", text="secret")], 3
    nbformat.write(told, path)
    assert rendering.strip(path)
    assert path.read_text() == NOTEBOOKS[0].read_text()
    assert not rendering.strip(path)


# What they call


def test_a_command_that_fails_raises(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    qtarget.command("show", "target=dft")
    assert "p(y)" in capsys.readouterr().out
    with pytest.raises(QTargetError, match="qtarget train target=dtf ended with exit code 2"):
        qtarget.command("train", "target=dtf")
    assert "did you mean" in capsys.readouterr().err
