"""The benchmark suite: prints its tables and keeps them in RESULTS.md beside this file.

    python benchmarks/run.py [--part a b c d e f g h] [--quick] [--out FILE]

a  the output layer and the loss: time and memory beside plain cross-entropy
b  an optimizer step under each target, with live and with cached references, beside plain SFT's
c  tokens a second beside TRL's trainers and a plain PyTorch loop
d  a sweep of eight runs with live and with cached references
e  share of the machine's matrix-product rate that a step reaches, and where its time goes
f  TRL's SFTTrainer with its own losses and with designs: time and memory
g  sampled answers of 20 to 300 tokens: refilled batches beside whole ones
h  rows that are prepared once, beside rows that every process prepares in its own memory

Parts that aren't run keep what an earlier run wrote. Leave the machine alone meanwhile: all of it takes about forty
minutes on two cores.
--quick: fewer rounds and steps, to see it work; its figures go to the screen only, unless --out says where.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Sequence
from pathlib import Path

from table import Section, store

from qtarget.run.fit import prepare_process

PARTS = {
    "a": "layer",
    "b": "steps",
    "c": "peers",
    "d": "sweep",
    "e": "rate",
    "f": "inside_trl",
    "g": "answers",
    "h": "prepared",
}
"""Part → the module beside this file whose `section(quick)` measures it."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=sorted(PARTS), default=sorted(PARTS))
    parser.add_argument("--quick", action="store_true", help="fewer rounds and steps")
    parser.add_argument("--out", type=Path, help="the Markdown file (default: RESULTS.md beside this script)")
    options = parser.parse_args(arguments)
    prepare_process(0)
    default = None if options.quick else Path(__file__).with_name("RESULTS.md")
    for part in options.part:
        report(measured(part, options.quick), options.out or default)


def measured(part: str, quick: bool) -> Section:
    began = time.perf_counter()
    found: Section = importlib.import_module(PARTS[part]).section(quick)
    print(f"({part}) took {time.perf_counter() - began:.0f} s\n")
    return found


def report(section: Section, out: Path | None) -> None:
    print(section.markdown, flush=True)
    if out:
        store(out, section)


if __name__ == "__main__":
    main()
