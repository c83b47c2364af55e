"""A mutation run: one small fault at a time in the loss, the designs and the batches, and the tests have to notice.

    make mutants                      a seeded sample of 300; SAMPLE=N SEED=S; SAMPLE=all
    python tests/mutants.py --list    the mutants themselves; --module math/head.py: one module's

No library: mutmut 3.8 leaves out decorated functions (half of these modules are properties) and draws no sample;
cosmic-ray writes each mutant into the checked-out source and starts an interpreter (five seconds of torch) for each.

One interpreter imports torch, pytest and the other libraries once and forks for every mutant; qtarget is imported in
the child alone, where the mutated module is compiled from its syntax tree: no file of the source changes. Results are
appended to build/mutants.jsonl; those of unchanged source and tests are not computed again.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import json
import os
import random
import resource
import signal
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from mutations import mutations

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "qtarget"
RESULTS = ROOT / "build" / "mutants.jsonl"
SURVIVORS = ROOT / "tests" / "mutants_survivors.toml"
ENOUGH = 0.95
"""The part of the mutants that change a number which has to be killed."""
BROKEN = 70
"""The exit status of a child that failed outside pytest: the run's own fault, no mutant's."""
MEMORY = 6 << 30
"""Bytes a child may write to."""
LIBRARIES = ("torch", "numpy", "pytest", "hypothesis", "hydra", "omegaconf", "transformers", "lightning")
"""What the parent imports once; of no more use than the time it saves."""

LAWS = tuple(
    f"test_laws.py::test_{law}"
    for law in (
        "gradient_is_that_of_the_published_objective",
        "measures_are_those_of_the_gradient",
        "cutting_a_batch_changes_nothing_unless_the_yaml_says_so",
        "every_kind_of_design_takes_every_part_option",
        "extreme_logits_stay_finite",
    )
)
LOSS = (
    ("test_loss.py", "test_derivatives.py", "test_defaults.py", "test_scopes.py", "test_products.py"),
    ("test_induced.py", "test_vectors.py"),
    ("test_schedule.py", "test_identities.py", "test_masses.py", "test_head.py", "test_groups.py"),
    LAWS,
    ("test_references_given.py", "test_measures.py", "test_draws.py"),
)
BATCHES = (("test_weights.py",), ("test_chat.py", "test_invariance.py"))
STAGES = {
    "math": LOSS,
    "design": LOSS,
    "math/scoring.py": (*LOSS, ("test_compiled.py",)),
    "data/batch.py": BATCHES,
    "data/packing.py": BATCHES,
    "train/step.py": BATCHES,
}
"""Module or package → its tests, cheapest first; a stage is run where the one before has not noticed."""


@dataclass(frozen=True)
class Mutant:
    """One fault: `name` says module, function, before and after; `number` is its place among the module's mutants."""

    module: str
    number: int
    line: int
    name: str


@dataclass(frozen=True)
class Result:
    """How a mutant fared: killed, timeout (which counts as killed) or survived."""

    name: str
    line: int
    status: str
    seconds: float
    source: str
    tests: str


def modules() -> list[str]:
    inside = [path for package in ("math", "design") for path in sorted((SOURCE / package).glob("*.py"))]
    files = [path.relative_to(SOURCE).as_posix() for path in inside if path.name != "__init__.py"]
    return [*files, "train/step.py", "data/batch.py", "data/packing.py"]


def mutants_of(module: str) -> list[Mutant]:
    """All of a module's, each with a name of its own."""
    tree = ast.parse((SOURCE / module).read_text())
    seen: Counter[str] = Counter()
    result = []
    for number, mutation in enumerate(mutations(tree)):
        name = f"{module} {mutation.scope}: {difference(mutation.before, mutation.after)}"
        seen[name] += 1
        result.append(Mutant(module, number, mutation.line, name + (f" #{seen[name]}" if seen[name] > 1 else "")))
    return result


def equal_characters(one: str, two: str) -> int:
    """How many at the beginning."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False)))


def difference(before: str, after: str, context: int = 30) -> str:
    """`before → after`, of a long statement only what stands around the place where they part."""
    start = equal_characters(before, after)
    end = equal_characters(before[start:][::-1], after[start:][::-1])

    def near(text: str) -> str:
        first, last = max(start - context, 0), min(len(text) - end + context, len(text))
        return ("…" if first else "") + text[first:last] + ("…" if last < len(text) else "")

    return f"{near(before)} → {near(after)}" if after != "pass" else f"{before[: 3 * context]} → removed"


def mutated(path: Path, number: int) -> CodeType:
    """The module's code with that fault."""
    tree = ast.parse(path.read_text())
    for index, _ in enumerate(mutations(tree)):
        if index == number:
            return compile(ast.fix_missing_locations(tree), str(path), "exec")
    raise IndexError(number)


class Mutating(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Finds one module, and runs other code in its place."""

    def __init__(self, name: str, path: Path, code: CodeType) -> None:
        super().__init__(name, str(path))
        self.code = code

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> Any:
        return (
            importlib.util.spec_from_file_location(fullname, self.path, loader=self) if fullname == self.name else None
        )

    def get_code(self, fullname: str) -> CodeType:
        return self.code


def outcome(work: Callable[[], int], seconds: float) -> int | None:
    """The exit status of work in a forked child without output, a negative one for a signal; None: it took too long."""
    child = os.fork()
    if child == 0:
        status = BROKEN
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            silence = os.open(os.devnull, os.O_RDWR)
            for stream in range(3):
                os.dup2(silence, stream)
            status = work()
        finally:
            os._exit(status)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _placed(test: str) -> str:
    """A test file of the folders below tests, with what is named in it."""
    file, colons, name = test.partition("::")
    (path,) = (ROOT / "tests").rglob(file)
    return f"{path}{colons}{name}"


def pytest_status(tests: Sequence[str], module: str | None = None, number: int = 0) -> int:
    """Pytest's exit status in this process, with that mutant in place of its module."""
    import pytest

    sys.dont_write_bytecode = True
    if module is not None:
        path = SOURCE / module
        name = "qtarget." + module.removesuffix(".py").replace("/", ".")
        sys.meta_path.insert(0, Mutating(name, path, mutated(path, number)))
    imported = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"  # hypothesis, by the parent
    options = ["-x", "-q", "-W", imported, "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-seed=0"]
    marks = ["-m", "not slow and not pretrained and not browser"]
    return int(pytest.main([*options, *marks, *map(_placed, tests)]))


def stages(module: str) -> tuple[tuple[str, ...], ...]:
    return STAGES.get(module) or STAGES[module.split("/", maxsplit=1)[0]]


class Run:
    """A run over a list of mutants, which goes on where an earlier one stopped."""

    def __init__(self) -> None:
        self.limits: dict[tuple[str, ...], float] = {}
        self.results = self._read()

    def _read(self) -> dict[str, Result]:
        if not RESULTS.exists():
            return {}
        rows = [Result(**json.loads(line)) for line in RESULTS.read_text().splitlines() if line.endswith("}")]
        return {row.name: row for row in rows}

    def limit(self, tests: tuple[str, ...]) -> float:
        """Seconds a mutant may take: five times what the tests need without one, which have to pass."""
        if tests not in self.limits:
            start = time.monotonic()
            status = outcome(lambda: pytest_status(tests), 600)
            if status != 0:
                raise SystemExit(f"These tests don't pass without a mutant (pytest's exit status {status}): {tests}")
            self.limits[tests] = max(20.0, 5 * (time.monotonic() - start))
        return self.limits[tests]

    def result(self, mutant: Mutant) -> Result:
        """From the file where nothing has changed since, or measured and written there."""
        source, tests = fingerprint(SOURCE / mutant.module), tests_fingerprint(mutant.module)
        known = self.results.get(mutant.name)
        if known and known.source == source and (known.tests == tests or known.status != "survived"):
            return known
        start = time.monotonic()
        status = self._status(mutant)
        result = Result(mutant.name, mutant.line, status, round(time.monotonic() - start, 2), source, tests)
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(asdict(result), ensure_ascii=False) + "\n")
        return result

    def _status(self, mutant: Mutant) -> str:
        for tests in stages(mutant.module):
            limit = self.limit(tests)
            status = outcome(lambda tests=tests: pytest_status(tests, mutant.module, mutant.number), limit)  # type: ignore[misc]
            if status in (4, 5, BROKEN):  # pytest's: wrong usage, no tests
                raise SystemExit(f"{mutant.name}: no test could be run (exit status {status}): {tests}")
            if status != 0:
                return "timeout" if status is None else "killed"
        return "survived"


def fingerprint(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]


def tests_fingerprint(module: str) -> str:
    files = {test.split("::")[0] for tests in stages(module) for test in tests}
    return fingerprint(*(Path(_placed(file)) for file in sorted(files)))


def reviewed() -> dict[str, str]:
    """Mutant → why it may survive."""
    return {row["mutant"]: row["reason"] for row in tomllib.loads(SURVIVORS.read_text())["survivor"]}


def verdict(results: Sequence[Result], reasons: dict[str, str]) -> tuple[str, bool]:
    """A summary, and whether enough of the mutants that change a number were killed."""
    survived = [result for result in results if result.status == "survived"]
    open_ones = [result for result in survived if result.name not in reasons]
    counted = len(results) - (len(survived) - len(open_ones))
    killed = len(results) - len(survived)
    share = killed / counted if counted else 1.0
    lines = [f"survived, line {result.line}: {result.name}" for result in open_ones]
    lines += [
        f"listed as a survivor, but killed: {r.name}" for r in results if r.status != "survived" and r.name in reasons
    ]
    lines.append(
        f"{len(results)} mutants, {len(survived) - len(open_ones)} of them change no number (mutants_survivors.toml): "
        f"{killed} of {counted} killed, {share:.1%}; {ENOUGH:.0%} are asked for"
    )
    return "\n".join(lines), share >= ENOUGH


def sampled(everything: list[Mutant], sample: str, seed: int) -> Iterator[Mutant]:
    """A seeded sample in random order: a run that is cut short has looked everywhere."""
    count = len(everything) if sample == "all" else min(int(sample), len(everything))
    yield from random.Random(seed).sample(everything, count)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--sample", default="300", help="how many mutants, or all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--module", help="one module alone, such as math/head.py")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no mutant after that")
    parser.add_argument("--list", action="store_true", help="name the mutants and run nothing")
    given = parser.parse_args(arguments)
    everything = [m for module in modules() if given.module in (None, module) for m in mutants_of(module)]
    chosen = list(sampled(everything, given.sample, given.seed))
    if given.list:
        print("\n".join(mutant.name for mutant in chosen))
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.chdir(ROOT)
    for library in LIBRARIES:
        importlib.import_module(library)
    run, results, end = Run(), [], time.monotonic() + 60 * given.minutes
    for number, mutant in enumerate(chosen, 1):
        if time.monotonic() > end:
            break
        results.append(run.result(mutant))
        print(f"{number}/{len(chosen)} {results[-1].status} {results[-1].seconds}s {mutant.name}", flush=True)
    summary, enough = verdict(results, reviewed())
    print(summary)
    return 0 if enough else 1


if __name__ == "__main__":
    sys.exit(main())
