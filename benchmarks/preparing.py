"""One preparation of rows in a process of its own: its time, and the memory that its examples take.

    python preparing.py memory|kept ROWS.jsonl HELDOUT FOLDER

memory: as Python's objects, the way of commit 08cbad9 too. kept: below FOLDER, for all who come after. It prints what
it measured as JSON once every example was looked at, and holds them until its standard input ends.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow  # noqa: F401  (the libraries of both ways are no memory of examples)
import torch  # noqa: F401

from qtarget.data.module import DataConfig, prepare
from qtarget.data.sources.jsonl import Jsonl
from qtarget.model import provide

CONTEXT = 2048


def memory() -> dict[str, int]:
    """Bytes: of this process alone, of pages of files, and its share of both where processes share pages."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines}
    return {"private": sizes["Anonymous"], "pages": sizes["Rss"] - sizes["Anonymous"], "share": sizes["Pss"]}


def cpu() -> float:
    """Seconds of processors, of this process and those that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def prepared(way: str, config: DataConfig, folder: str, tokenizer: Any) -> Any:
    if way == "memory":
        return prepare(config, tokenizer, CONTEXT)
    from qtarget.data.once import prepare_once

    return prepare_once(replace(config, keep=True), tokenizer, CONTEXT, Path(folder))


def main(way: str, rows: str, heldout: str, folder: str, model: str) -> None:
    tokenizer = provide.load_tokenizer(provide.resolve(model))
    config = DataConfig(Jsonl(rows), rows=None, heldout_rows=int(heldout))
    before = memory()
    start, used = time.perf_counter(), cpu()
    data = prepared(way, config, folder, tokenizer)
    taken = {"seconds": time.perf_counter() - start, "cpu": cpu() - used}
    tokens = sum(len(example.input_ids) for example in data.train)
    after = memory()
    grown = {name: after[name] - before[name] for name in after}
    print(json.dumps({**taken, "rows": len(data.train), "tokens": tokens, **grown}), flush=True)
    sys.stdin.readline()
    print(json.dumps({name: value - before[name] for name, value in memory().items()}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
