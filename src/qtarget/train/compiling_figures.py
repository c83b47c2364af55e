"""What trials of the compiled loss have timed on this machine: QTARGET_CACHE/compiled_loss.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

import torch

from qtarget.files import cache_dir, write_atomically
from qtarget.train.compiling import Figures
from qtarget.train.fp32_products import processor
from qtarget.units import in_time

FILE = "compiled_loss.json"
Stored = dict[str, dict[str, Figures]]
"""Machine → what was scored → figures."""


@dataclass(frozen=True)
class Scored:
    """What a run puts through its loss.

    tokens: supervised ones of the whole run, by one process. what: the design's parts, references, vocabulary and
    precision, in words. machine: says what runs it, see `machine`; on a GPU it asks the driver.
    """

    tokens: float
    vocabulary: int
    what: str
    machine: Callable[[], str]

    @property
    def kept(self) -> Figures | None:
        """What an earlier trial of the same on this machine has timed; None before the first."""
        return stored().get(self.machine(), {}).get(self.what)

    @property
    def longest_compile(self) -> float | None:
        """Seconds that compiling any loss took here at most; None where none was compiled."""
        return max((figures.compiling for figures in stored().get(self.machine(), {}).values()), default=None)

    def keep(self, figures: Figures) -> None:
        """For later runs. Where that can't be written, each makes a trial for itself."""
        kept, here = stored(), self.machine()
        kept[here] = kept.get(here, {}) | {self.what: figures}
        plain = {machine: {what: asdict(each) for what, each in of.items()} for machine, of in kept.items()}
        file = cache_dir() / FILE
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(plain, indent=1))


def stored() -> Stored:
    """All of the file. What isn't figures in it is as if it weren't there, and is measured anew."""
    with suppress(OSError, ValueError):
        read = json.loads((cache_dir() / FILE).read_text(encoding="utf-8"))
        return {str(machine): _figures(of) for machine, of in read.items()} if isinstance(read, dict) else {}
    return {}


def _figures(of_machine: Any) -> dict[str, Figures]:
    held = {}
    for what, values in of_machine.items() if isinstance(of_machine, dict) else ():
        with suppress(TypeError, ValueError):
            held[what] = Figures(**values)
    return held


def machine(*, on_gpu: bool) -> str:
    """What runs a loss, in words: the device, and the version of torch. Figures of another one don't count."""
    device = torch.cuda.get_device_name() if on_gpu else f"{processor()}, {torch.get_num_threads()} threads"
    return f"{device}, torch {torch.__version__}"


def what_is_scored(design: object, held: Mapping[str, str], vocabulary: str, precision: str) -> str:
    """What the time of a loss goes by. held: role → how much of it: label, topk or full."""
    references = [f"{role} {detail}" for role, detail in sorted(held.items())]
    return ", ".join([parts_of(design), *references, f"vocabulary {vocabulary}", precision])


def parts_of(part: object) -> str:
    """A design's parts without their numbers, which change no pass: Mixture(Power(policy), Self, Constant, tokens)."""
    if part is None or (isinstance(part, int | float) and not isinstance(part, bool)):
        return ""
    if not is_dataclass(part):
        return str(part) if isinstance(part, str | bool) else type(part).__name__
    inner = ", ".join(filter(None, (parts_of(getattr(part, field.name)) for field in fields(part))))
    return f"{type(part).__name__}({inner})" if inner else type(part).__name__


def in_words(*, on_gpu: bool) -> str:
    """What is kept of this machine, for a person."""
    kept = stored().get(machine(on_gpu=on_gpu), {})
    listed = [f"{what}: {figures}, {in_time(figures.compiling)} to compile" for what, figures in kept.items()]
    none = "loss.compile=auto has made no trial here yet: the first long run of a design does"
    return "\n".join(["loss.compile=auto goes by these trials:", *listed]) if listed else none
