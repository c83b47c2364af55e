"""The wheel, installed apart from the checkout, used from an empty folder."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_carries_every_configuration(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert f"qtarget/conf/{path.relative_to(ROOT / 'conf')}" in names
    for path in (ROOT / "src" / "qtarget" / "track").iterdir():
        assert path.suffix == ".pyc" or path.is_dir() or f"qtarget/track/{path.name}" in names


@pytest.mark.slow
def test_an_installed_wheel_trains_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    """The dependencies are borrowed from this environment; its own qtarget, being editable, is not among them."""
    environment = tmp_path / "env"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel, cwd=tmp_path)
    site = next(environment.glob("lib/python*/site-packages"))
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert str(environment) in run(python, "-c", "import qtarget; print(qtarget.__file__)", cwd=empty)
    qtarget = environment / "bin" / "qtarget"
    small = ("data.rows=48", "data.heldout_rows=8")
    out = run(qtarget, "train", "model=tiny", "data=arithmetic", "trainer.max_steps=5", *small, cwd=empty)
    assert "next: qtarget compare outputs/runs" in out
    (result,) = empty.glob("outputs/runs/*/result.json")
    assert json.loads(result.read_text())["status"] == "finished"
    run(qtarget, "compare", "outputs/runs", cwd=empty)
    code = "import qtarget; print(qtarget.load_design('target_sft', residual='uniform', **{'reliance.alpha': 0.5}))"
    assert run(python, "-c", code, cwd=empty).startswith("Mixture(reliance=Power(alpha=0.5")
