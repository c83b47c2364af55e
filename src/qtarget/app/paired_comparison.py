"""`qtarget compare A B --paired METRIC`: two evaluations on the prompts that both answered."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from qtarget.app.compare import near
from qtarget.errors import QTargetError
from qtarget.evaluate.samples import FILE, Paired, Sample, paired, read_samples


def compare_paired(paths: Sequence[str | Path], metric: str) -> int:
    """Print, for each source of problems that both have, the two means and their difference prompt by prompt."""
    if len(paths) != 2:
        raise QTargetError(f"--paired compares two runs, got {len(paths)}: qtarget compare A B --paired {metric}")
    files = [samples_file(Path(path)) for path in paths]
    a, b = (read_samples(file) for file in files)
    sources = [source for source in _sources(a) if source in _sources(b)]
    if not sources:
        raise QTargetError(f"no source of problems in common: {', '.join(_sources(a))} and {', '.join(_sources(b))}")
    print(f"A  {near(files[0])}\nB  {near(files[1])}\n{metric}, with the 95 % interval of B − A:")
    for source in sources:
        print(f"  {source:<14}{_line(paired(_of(a, source), _of(b, source), metric))}")
    print(f"next: {shlex.join(['qtarget', 'compare', *map(str, paths)])}")
    return 0


def samples_file(path: Path) -> Path:
    """A file of samples: itself, in the folder of a run or an evaluation, or in the only one below a folder."""
    if path.is_file():
        return path
    found = [path / FILE] if (path / FILE).is_file() else sorted(path.glob(f"*/{FILE}"))
    if len(found) == 1:
        return found[0]
    told = f"holds {len(found)} evaluations; name one: {', '.join(str(file.parent) for file in found)}"
    raise QTargetError(f"{path} {told if found else f'has no {FILE}: name a run, or qtarget evaluate a checkpoint'}")


def _sources(samples: Sequence[Sample]) -> list[str]:
    return list(dict.fromkeys(sample.source for sample in samples))


def _of(samples: Sequence[Sample], source: str) -> list[Sample]:
    return [sample for sample in samples if sample.source == source]


def _line(found: Paired) -> str:
    score, apart = found.difference.score, found.only_a + found.only_b
    others = f", {apart} others left out" if apart else ""
    return (
        f"A {found.a:.3f}  B {found.b:.3f}  B − A {score.mean:+.3f} [{score.low:+.3f}, {score.high:+.3f}]  "
        f"p = {found.difference.p_value:.2g} (sign flips), {found.shared} shared prompts{others}"
    )
