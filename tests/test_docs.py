"""What the documents show runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import qtarget

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DESIGNS = (ROOT / "docs" / "designs.md").read_text()
FILES = dict(re.findall(r"```\w+\n# (\S+\.(?:py|yaml))\n(.*?)```", DESIGNS, re.DOTALL))
SNIPPETS = [
    code
    for code in re.findall(r"```python\n(.*?)```", DESIGNS, re.DOTALL)
    if "import SFTTrainer" not in code and not code.startswith("# mine.py")
]


@pytest.mark.parametrize("code", SNIPPETS, ids=lambda code: code.strip().splitlines()[-1][:40])
def test_snippets_of_the_design_page_run(code: str) -> None:
    """TRL's is run in test_parity."""
    logits, labels = torch.randn(2, 5, 11, requires_grad=True), torch.randint(11, (2, 5))
    names: dict[str, Any] = {"logits": logits, "labels": labels, "my_loss": F.cross_entropy}
    exec(compile(code, "docs/designs.md", "exec"), names)
    if "design" in names:
        out = qtarget.dense_loss(logits, labels, names["design"])
        assert torch.isfinite(out.loss).all()
        out.total.backward()
    assert logits.grad is not None or "target" in names


def test_the_brier_objective_of_the_page_is_the_brier_score() -> None:
    names: dict[str, Any] = {}
    exec(next(code for code in SNIPPETS if "def brier" in code), names)
    logits, labels = torch.randn(5, 7, dtype=torch.float64), torch.randint(7, (5,))
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    qtarget.dense_loss(ours, labels, names["design"]).total.backward()
    (theirs.softmax(-1) - F.one_hot(labels, 7)).square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_designs_of_the_page_work_as_files(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Brier as files is Brier as code; the reliance of one's own is the maximum that it says."""
    from qtarget.config.composing import compose_target, instantiate_design

    for name, text in FILES.items():
        (workdir / name).parent.mkdir(parents=True, exist_ok=True)
        (workdir / name).write_text(text)
    monkeypatch.syspath_prepend(workdir)
    sys.modules.pop("mine", None)  # another test's
    brier, at_least = (instantiate_design(compose_target(name)) for name in ("brier", "at_least"))
    logits, labels = torch.randn(5, 7, dtype=torch.float64), torch.randint(7, (5,))
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    qtarget.dense_loss(ours, labels, brier).total.backward()
    (theirs.softmax(-1) - F.one_hot(labels, 7)).square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    p = logits.softmax(-1).gather(-1, labels[:, None]).squeeze(-1)
    torch.testing.assert_close(qtarget.dense_loss(logits, labels, at_least).reliance, p.clamp(min=0.2))
    assert instantiate_design(compose_target("at_least", ["target.reliance.floor=0.5"])).reliance.floor == 0.5


@pytest.mark.parametrize(
    "command",
    [
        line.split("#")[0].split()[2:]
        for line in DESIGNS.splitlines()
        if line.startswith("    qtarget train ") and "at_least" not in line
    ],
)
def test_command_lines_of_the_design_page_compose(command: list[str]) -> None:
    from qtarget.config.composing import compose_config, instantiate_design

    assert instantiate_design(compose_config("train", command).target)


def test_tests_that_the_readme_names_exist() -> None:
    named = re.findall(r"`(test_\w+)::(test_\w+)`", README)
    files = {path.stem: path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("test_*.py")}
    assert len(named) > 6
    assert [(file, test) for file, test in named if f"\ndef {test}(" not in files[file]] == []


def command_lines(text: str) -> list[list[str]]:
    """Overrides of `qtarget train` and `qtarget data` in a page, of a multirun those of its first job. Lines that leave
    something out (…), name what isn't there (OPTION) or belong to another page's files are passed over.
    """
    lines = re.findall(r"^ *qtarget (?:train|data) (.*)$", text.replace("\\\n", " "), re.MULTILINE)
    whole = [line for line in lines if not re.search("…|OPTION|at_least|brier", line)]
    words = [[word for word in shlex.split(line, comments=True) if "=" in word] for line in whole]
    return [[_first(word) for word in line if "hydra" not in word] for line in words]


def _first(override: str) -> str:
    """Of several values that stand without quotes or brackets."""
    return re.sub(r"^([\w@/.]+=[^,{\['\"]+),[^{\['\"]*$", r"\1", override)


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        *(
            pytest.param(f"docs/{path.name}", marks=pytest.mark.slow)
            for path in sorted((ROOT / "docs").glob("*.md"))
            if path.stem not in ("configuration", "api")
        ),
    ],
)
def test_command_lines_of_the_pages_compose(page: str) -> None:
    from qtarget.config.composing import compose_config

    for overrides in command_lines((ROOT / page).read_text(encoding="utf-8")):
        compose_config("train", overrides)


def test_keys_that_the_pages_name_beside_command_lines_are_keys() -> None:
    """Such as `data.source.hint`, `references.teacher.topk=50`. That each is set without a +: test_run_config."""
    from qtarget.config.manual import every_key

    keys = {key for key, _ in every_key()}
    places = {key[:end] for key in keys for end, letter in enumerate(key) if letter == "."}
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {re.sub(r"^references\.(prior|teacher|old)\b", "references.ROLE", key) for key in dotted_keys(pages)}
    inside = {key for key in named if key.startswith(WITHIN)}
    assert len(named - inside) > 60
    assert named - inside - keys - places == {"data.noise.parts.b.rate", "optim.lr.value"}  # of a part, of a sweep file


WITHIN = ("eval.server.", "eval.benchmarks.", "model.adapter.options.", "tracker.wandb.", "tracker.trackio.")
"""Keys of the user's names, of another library, and of parts with tables of their own."""


def dotted_keys(pages: list[Path]) -> set[str]:
    nodes = "data|model|optim|target|trainer|eval|references|checkpoint|tracker|loss"
    named = rf"[` ]\+?((?:{nodes})(?:\.\w+)+)(?=[=` ,])"
    return {key for page in pages for key in re.findall(named, page.read_text(encoding="utf-8")) if key[-3:] != ".md"}


def test_command_lines_are_found() -> None:
    text = "  qtarget train -m target=sft,dft \\\n  optim.lr=1e-5,3e-5 hydra/launcher=slots  # a=b\nqtarget train x=…\n"
    assert command_lines(text) == [["target=sft", "optim.lr=1e-5"]]
    assert len(command_lines(README)) > 8


@pytest.mark.slow
def test_the_minimal_example_learns(tmp_path: Path) -> None:
    """As a reader runs it: from any folder. It begins near the uniform ln 256 = 5.5."""
    script = ROOT / "examples" / "minimal.py"
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=True)
    nll = [float(value) for value in re.findall(r"nll ([\d.]+)", done.stdout)]
    assert 5 < nll[0] < 6
    assert nll[-1] < 1
    assert len(script.read_text().splitlines()) <= 60
