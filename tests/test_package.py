"""The wheel, installed apart from the checkout, used from an empty folder."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib.metadata import Distribution, distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from qtarget.extras import LAB, TRAINER, TRL

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


pytestmark = pytest.mark.xdist_group("wheel")  # built once


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_carries_every_configuration_and_template(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert f"qtarget/conf/{path.relative_to(ROOT / 'conf')}" in names
    for path in (ROOT / "sweeps").glob("*.yaml"):
        assert f"qtarget/sweeps/{path.name}" in names
    files = [path for path in (ROOT / "src" / "qtarget").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert {"report.html.j2", "page.css"} <= {path.name for path in files}
    for path in files:
        assert str(path.relative_to(ROOT / "src")) in names


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
    assert f"for `wandb sweep`: {site / 'qtarget' / 'sweeps'}" in run(qtarget, "sweep", "--list", cwd=empty)
    code = "import qtarget; print(qtarget.load_design('target_sft', residual='uniform', **{'reliance.alpha': 0.5}))"
    assert run(python, "-c", code, cwd=empty).startswith("Mixture(reliance=Power(alpha=0.5")


def test_the_extra_lab_is_known_by_its_modules() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    wanted = {canonicalize_name(Requirement(line).name) for line in extras["lab"]}
    distributions = packages_distributions()
    assert {canonicalize_name(distributions[module][0]) for module in LAB} == wanted
    assert len(LAB) == len(wanted)
    assert all("qtarget[lab]" in lines for name, lines in extras.items() if name not in ("lab", "trl"))


def test_the_extra_trl_is_known_by_its_modules() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    distributions = packages_distributions()
    wanted = {canonicalize_name(Requirement(line).name) for line in extras["trl"]}
    assert {canonicalize_name(distributions[module][0]) for module in TRL} == wanted
    assert set(TRAINER) < set(TRL)
    shared = set(extras["trl"]) - {line for line in extras["trl"] if line.startswith("trl")}
    assert shared <= set(extras["lab"])  # the same versions


def needed(start: Distribution) -> dict[str, Distribution]:
    """What pip installs with a distribution without extras, by name."""
    found: dict[str, Distribution] = {}
    waiting = [start]
    while waiting:
        for requirement in map(Requirement, waiting.pop().requires or []):
            name = canonicalize_name(requirement.name)
            if name not in found and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
                found[name] = distribution(name)
                waiting.append(found[name])
    return found


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment that holds what `pip install qtarget` brings: the files are borrowed from this one."""
    environment = tmp_path_factory.mktemp("bare")
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel, cwd=environment)
    site = next(environment.glob("lib/python*/site-packages"))
    qtarget = Distribution.at(next(site.glob("qtarget-*.dist-info")))
    for part in needed(qtarget).values():
        for top in {file.parts[0] for file in part.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists() and Path(str(part.locate_file(top))).exists():
                (site / top).symlink_to(Path(str(part.locate_file(top))).resolve())
    return python


@pytest.mark.slow
def test_without_the_extra_the_losses_and_designs_work_and_the_rest_names_it(bare: Path, tmp_path: Path) -> None:
    assert needed(distribution("torch")).keys() >= {"sympy"}  # a dependency of a dependency is brought along
    code = """
import sys, torch, qtarget
hidden, weight = torch.randn(2, 5, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
labels = torch.randint(11, (2, 5))
for name in qtarget.list_designs():
    qtarget.load_design(name)
out = qtarget.linear_loss(hidden, weight, labels, qtarget.load_design("dft"))
out.total.backward()
plain = qtarget.dense_loss(hidden.detach() @ weight.detach().T, labels, qtarget.load_design("dft"))
print(float((out.total - plain.total).abs()) < 1e-4)
class Outputs:
    logits = torch.randn(2, 5, 11, requires_grad=True)
print(bool(torch.isfinite(qtarget.hf_loss(qtarget.load_design("dft"))(Outputs, labels, None))))
print(sorted({"transformers", "lightning", "datasets", "wandb"} & sys.modules.keys()))
try:
    qtarget.encode
except qtarget.QTargetError as error:
    print(error)
"""
    first, second, third, last = run(bare, "-c", code, cwd=tmp_path).splitlines()
    assert (first, second, third) == ("True", "True", "[]")
    assert last.startswith("qtarget.encode needs accelerate, datasets")
    command = bare.parent / "qtarget"
    assert "fine-tune language models" in run(command, "--help", cwd=tmp_path)
    done = subprocess.run([command, "train", "model=tiny"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "`qtarget train` needs accelerate, datasets" in done.stderr
    assert done.stderr.strip().endswith("pip install 'qtarget[lab]'")
