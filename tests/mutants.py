"""A mutation run: one small fault at a time in the loss, the designs and the batches, and the tests have to notice.

    make mutants                      a seeded sample of 300; SAMPLE=N SEED=S; SAMPLE=all
    python tests/mutants.py --list    the mutants themselves; --module math/head.py: one module's

No library: mutmut 3.8 leaves out decorated functions (half of these modules are properties) and draws no sample;
cosmic-ray writes each mutant into the checked-out source and starts an interpreter (five seconds of torch) for each.

A fault is shown to the tests that call the function it stands in, quickest first (mutants_tests.py). One interpreter
collects the tests once and forks for every fault inside of a function, whose code is exchanged (mutants_exchange.py);
of what the import has used already, a class's fields or a constant, the mutated module is imported in place of its own.
No file of the source changes. Results are appended to build/mutants.jsonl; those of unchanged source and tests are not
computed again, and a change of the tests runs the survivors alone.
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
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from mutants_exchange import Collected
from mutants_fork import BROKEN, outcome
from mutants_tests import Chosen, KnownTests, Memory, Watching
from mutations import mutations

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "qtarget"
RESULTS = ROOT / "build" / "mutants.jsonl"
KNOWN = ROOT / "build" / "mutants_tests.json"
SURVIVORS = ROOT / "tests" / "mutants_survivors.toml"
ENOUGH = 0.95
"""The part of the mutants that change a number which has to be killed."""
FOLDER = Path(tempfile.gettempdir(), f"mutants-{os.getpid()}")
"""What tests write; of this process and all its children, one after another."""
LIBRARIES = ("torch", "numpy", "pytest", "hypothesis", "hydra", "omegaconf", "transformers", "lightning")
"""What the parent imports once; of no more use than the time it saves."""

TESTS = (
    "math/test_*.py",
    "design/test_*.py",
    "model/test_draws.py",
    "data/test_batch.py",
    "data/test_weights.py",
    "train/test_step.py",
)
"""Those that are run, except for LEFT_OUT."""
LEFT_OUT = ("test_mistakes.py", "test_parity.py", "test_head.py", "test_invariance.py", "test_settings.py")
"""Long ones, about what stands around the loss."""
ONLY_FOR = {"test_compiled.py": "math/scoring.py"}
"""Tests that call almost everything and take minutes → the module they are about."""
ALWAYS = ("test_defaults.py",)
"""Those that see a faulty default of a part whose functions they don't call."""


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


def test_files() -> list[Path]:
    return sorted(path for pattern in TESTS for path in (ROOT / "tests").glob(pattern) if path.name not in LEFT_OUT)


def pytest_status(files: Sequence[Path], plugin: object, mutant: Mutant | None = None) -> int:
    """Pytest's exit status in this process, with that mutant in place of its module."""
    import pytest

    sys.dont_write_bytecode = True
    if mutant is not None:
        path = SOURCE / mutant.module
        name = "qtarget." + mutant.module.removesuffix(".py").replace("/", ".")
        sys.meta_path.insert(0, Mutating(name, path, mutated(path, mutant.number)))
    imported = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"  # hypothesis, by the parent
    plugins = [option for name in ("cacheprovider", "xdist", "nbmake") for option in ("-p", f"no:{name}")]
    options = ["-x", "-q", "-W", imported, "--hypothesis-seed=0", *plugins]
    marks = ["-m", "not slow and not pretrained and not browser", f"--rootdir={ROOT}", f"--basetemp={FOLDER}"]
    return int(pytest.main([*options, *marks, *map(str, files)], plugins=[plugin]))


def watched_status(memory: Memory, prints: dict[str, str]) -> int:
    """Pytest's exit status for these test files without a mutant; what their tests call is kept."""
    watching = Watching(SOURCE)
    status = pytest_status([ROOT / file for file in prints], watching)
    if status == 0:
        memory.keep(prints, watching.tests)
    return status


def known_tests() -> KnownTests:
    """What every test calls; test files that have changed are watched first, and have to pass."""
    source = fingerprint(*(SOURCE / module for module in modules()))
    prints = {path.relative_to(ROOT).as_posix(): fingerprint(path) for path in test_files()}
    memory = Memory(KNOWN, source)
    changed = {file: prints[file] for file in memory.changed(prints)}
    status = outcome(lambda: watched_status(memory, changed), 3600) if changed else 0
    if status != 0:
        raise SystemExit(f"The tests don't pass without a mutant: pytest's exit status is {status}")
    return Memory(KNOWN, source).known(prints, SOURCE)


class Run:
    """A run over a list of mutants, which goes on where an earlier one stopped."""

    def __init__(self, seconds: float = math.inf) -> None:
        self.end = time.monotonic() + seconds
        self.tests = fingerprint(*test_files())
        self.known = known_tests()
        self.results = self.read()

    def read(self) -> dict[str, Result]:
        if not RESULTS.exists():
            return {}
        rows = [Result(**json.loads(line)) for line in RESULTS.read_text().splitlines() if line.endswith("}")]
        return {row.name: row for row in rows}

    def result(self, mutant: Mutant) -> Result | None:
        """From the file, where nothing has changed since."""
        known = self.results.get(mutant.name)
        same = known and known.source == fingerprint(SOURCE / mutant.module)
        return known if known and same and (known.tests == self.tests or known.status != "survived") else None

    def measured(self, mutant: Mutant, tried: Callable[[Sequence[str], float], int | None]) -> Result:
        """How it fares when its tests are `tried`, kept in the file."""
        start = time.monotonic()
        status = self._status(mutant, tried)
        seconds = round(time.monotonic() - start, 2)
        result = Result(mutant.name, mutant.line, status, seconds, fingerprint(SOURCE / mutant.module), self.tests)
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(asdict(result), ensure_ascii=False) + "\n")
        self.results[mutant.name] = result
        return result

    def imported_anew(self, mutant: Mutant) -> Result:
        """In an interpreter that imports the mutant in place of its module."""

        def tried(tests: Sequence[str], seconds: float) -> int | None:
            files = sorted({ROOT / test.split("::")[0] for test in tests})
            return outcome(lambda: pytest_status(files, Chosen(tests), mutant), seconds)

        return self.measured(mutant, tried)

    def exchanged(self, mutants: Sequence[Mutant], done: Callable[[Result], None]) -> int:
        """Those with a fault inside of a function, one after another in this process. Returns pytest's exit status."""

        def work(collected: Collected) -> None:
            for mutant in mutants:
                pairs = collected.exchanges(SOURCE / mutant.module, mutated(SOURCE / mutant.module, mutant.number))
                if pairs and self.known.calls(mutant.module, mutant.line) and time.monotonic() < self.end:
                    done(self.measured(mutant, partial(tried, collected, pairs)))

        def tried(collected: Collected, pairs: Any, tests: Sequence[str], seconds: float) -> int | None:
            return outcome(lambda: collected.status(tests, pairs), seconds)

        return pytest_status(test_files(), Collected(SOURCE, work))

    def _tests(self, mutant: Mutant) -> list[str]:
        tests = self.known.of(mutant.module, mutant.line, ALWAYS)
        about = {test: ONLY_FOR.get(Path(test.split("::")[0]).name, mutant.module) for test in tests}
        return [test for test in tests if about[test] == mutant.module] or tests

    def _status(self, mutant: Mutant, tried: Callable[[Sequence[str], float], int | None]) -> str:
        for tests, seconds in self.known.stages(self._tests(mutant)):
            status = tried(tests, 20 + 5 * seconds)
            if status in (4, 5, BROKEN):  # pytest's: wrong usage, no tests
                raise SystemExit(f"{mutant.name}: no test could be run (exit status {status}): {tests}")
            if status != 0:
                return "timeout" if status is None else "killed"
        return "survived"


def fingerprint(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]


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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that children end, too
    os.chdir(ROOT)
    for library in LIBRARIES:
        importlib.import_module(library)
    results = run_all(Run(60 * given.minutes), chosen)
    summary, enough = verdict(results, reviewed())
    print(summary)
    return 0 if enough else 1


def run_all(run: Run, chosen: Sequence[Mutant]) -> list[Result]:
    """Results of all that there was time for; those that are listed as survivors, which take longest, come last."""
    terminal, listed = os.dup(sys.stdout.fileno()), reviewed()

    def done(result: Result) -> None:
        known = sum(mutant.name in run.results for mutant in chosen)
        os.write(terminal, f"{known}/{len(chosen)} {result.status} {result.seconds}s {result.name}\n".encode())

    try:
        for later in (False, True):
            run_some(run, [mutant for mutant in chosen if (mutant.name in listed) == later], done)
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)
    results = [run.result(mutant) for mutant in chosen]
    return [result for result in results if result]


def run_some(run: Run, mutants: Sequence[Mutant], done: Callable[[Result], None]) -> None:
    """Faults of functions first, in a process of their own."""
    unknown = [mutant for mutant in mutants if run.result(mutant) is None]
    if unknown and outcome(lambda: run.exchanged(unknown, done), math.inf) != 0:
        raise SystemExit("The tests couldn't be collected")
    run.results = run.read()
    for mutant in unknown:
        if run.result(mutant) is None and time.monotonic() < run.end:
            done(run.imported_anew(mutant))


if __name__ == "__main__":
    sys.exit(main())
