"""What `eval` names beside the held-out rows: benchmarks to answer, and text outside the task."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qtarget import checks
from qtarget.config.composing import instantiate
from qtarget.data.example import Demonstration, Example
from qtarget.data.module import encoded
from qtarget.data.sources.source import Source, read
from qtarget.errors import QTargetError

TAKEN = ("train", "val", "test", "target", "detection", "retention", "heldout")
"""Names that other metrics begin with."""


@dataclass(frozen=True)
class Benchmarks:
    """benchmarks: name → problems with a verifier; retention: text outside the task, as tokens."""

    benchmarks: Mapping[str, Sequence[Demonstration]] = field(default_factory=dict)
    retention: Sequence[Example] = ()


def check_benchmarks(benchmarks: Any, retention: Any) -> None:
    """Raise QTargetError for eval.benchmarks and eval.retention that can't be read as this."""
    for key, node, source_key in (
        ("benchmarks", benchmarks, "benchmarks.NAME.source"),
        ("retention", retention, "retention.source"),
    ):
        if not isinstance(node, Mapping):
            raise QTargetError(
                f"eval.{key}={node} sets a value, not a source: write +data/source@eval.{source_key}=OPTION"
            )
    for name, benchmark in benchmarks.items():
        if name in TAKEN or not re.fullmatch(r"[\w.@-]+", str(name)):
            raise QTargetError(
                f"eval.benchmarks.{name}: a benchmark's name heads its metrics and can't be one of {', '.join(TAKEN)}, "
                "nor hold spaces or slashes"
            )
        _check_rows(f"eval.benchmarks.{name}", benchmark)
    if retention.get("source") is not None:
        _check_rows("eval.retention", retention)


def _check_rows(key: str, node: Any) -> None:
    source = node.get("source") if isinstance(node, Mapping) else None
    if not isinstance(source, Mapping):
        raise QTargetError(f"{key} needs a source: add +data/source@{key}.source=NAME, one of `data/source`")
    if node.get("rows") is not None:
        checks.whole(f"{key}.rows", node["rows"], 1)


def read_benchmarks(
    benchmarks: Mapping[str, Any], retention: Mapping[str, Any], tokenizer: Any, context: int
) -> Benchmarks:
    """Read what `eval` names. Raises QTargetError for a benchmark with rows that nothing can judge."""
    problems = {str(name): _problems(str(name), benchmark) for name, benchmark in benchmarks.items()}
    if retention.get("source") is None:
        return Benchmarks(problems)
    # Text that is only read may stop anywhere: what the model has room for is enough.
    return Benchmarks(problems, encoded(_rows("eval.retention", retention), tokenizer, context, "cut"))


def _rows(key: str, node: Mapping[str, Any]) -> list[Demonstration]:
    source = instantiate(node["source"])
    checks.implements(f"{key}.source", source, Source)
    return read(source, "heldout", node.get("rows"))[0]


def _problems(name: str, node: Mapping[str, Any]) -> list[Demonstration]:
    rows = _rows(f"eval.benchmarks.{name}", node)
    unjudged = sum(row.entry is None for row in rows)
    if unjudged or not rows:
        raise QTargetError(
            f"eval.benchmarks.{name}: {unjudged} of {len(rows)} rows name no verifier, and a benchmark is judged: take "
            "a source with verified rows, or measure the text as eval.retention"
        )
    return rows
