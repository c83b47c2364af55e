"""Part tests: tests/gpu, each with its outcome."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

TESTS = Path(__file__).resolve().parents[1] / "tests" / "gpu"


def measure(device: str, quick: bool, keep: Any) -> int:
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "outcomes.xml")
        chosen = ["-m", "not slow"] if quick else []
        command = [sys.executable, "-m", "pytest", str(TESTS), "-q", f"--junit-xml={written}", *chosen]
        code = subprocess.run(command, cwd=TESTS.parents[1], check=False).returncode
        keep(f"tests/gpu on {device}", outcomes(written) if written.is_file() else [])
    return code


def outcomes(path: Path) -> list[dict[str, Any]]:
    """A row for each test: what became of it, and the first line of what it said."""
    return [
        {"test": case.get("name", ""), "outcome": kind, "seconds": float(case.get("time", 0)), "said": said}
        for case in ElementTree.parse(path).iter("testcase")
        for kind, said in [_outcome(case)]
    ]


def _outcome(case: ElementTree.Element) -> tuple[str, str | None]:
    for kind in ("failure", "error", "skipped"):
        if (found := case.find(kind)) is not None:
            return kind, (found.get("message") or "").splitlines()[0].replace("|", "¦")[:160]
    return "passed", None
