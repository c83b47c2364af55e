"""(b) What an optimizer step costs under other targets, beside plain SFT's."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import timing
import torch
from table import Row, Section
from torch import Tensor

from qtarget.config.run_config import RunConfig
from qtarget.data.batch import Batch
from qtarget.model.policy import Policy
from qtarget.run import build
from qtarget.run.plan import Plan, make_plan
from qtarget.train.compiling import Engine
from qtarget.train.compiling_trial import by_trial
from qtarget.train.lightning_module import QTargetModule

LIVE_TEACHER = ("reference@references.teacher=frozen", "references.teacher.name=${model.name}")
CACHED_TEACHER = ("reference@references.teacher=cached", "references.teacher.name=${model.name}")
CACHED_PRIOR = ("reference@references.prior=cached",)
LORA = ("model/adapter=lora",)
SETTING = ("trainer.precision=bf16-mixed", "trainer.eval_every=0", "eval.kl_prior=false", "data.heldout_rows=4")


@dataclass(frozen=True)
class Variant:
    """A way to train. base: the variant whose step its own is compared with."""

    overrides: tuple[str, ...]
    base: str = "sft"
    aim: str | None = None


VARIANTS = {
    "sft": Variant(("target=sft",)),
    "dft": Variant(("target=dft",)),
    "asft, live prior": Variant(("target=asft",), aim="≤ 1.36"),
    "asft, cached hidden states": Variant(
        ("target=asft", *CACHED_PRIOR, "references.prior.detail=hidden"), aim="≤ 1.12"
    ),
    "one_minus_prior, live prior": Variant(("target=one_minus_prior",), aim="≤ 1.36"),
    "one_minus_prior, cached label statistics": Variant(
        ("target=one_minus_prior", *CACHED_PRIOR, "references.prior.detail=label"), aim="≤ 1.03"
    ),
    "target_sft, live teacher": Variant(("target=target_sft", *LIVE_TEACHER), aim="≤ 1.36"),
    "target_sft, cached hidden states": Variant(
        ("target=target_sft", *CACHED_TEACHER, "references.teacher.detail=hidden"), aim="≤ 1.12"
    ),
    "sft, LoRA": Variant(("target=sft", *LORA)),
    "asft, LoRA, prior = adapter off": Variant(
        ("target=asft", *LORA, "reference@references.prior=adapter_off"), base="sft, LoRA", aim="≤ 1.36"
    ),
}


@dataclass(frozen=True)
class Rows:
    """Which rows, and how many of them a step reads."""

    data: str
    batch_size: int

    @property
    def overrides(self) -> tuple[str, ...]:
        kept = 8 * self.batch_size  # enough for steps to differ, few enough for caches to be built at once
        return (f"data={self.data}", f"data.rows={kept}", f"trainer.batch_size={self.batch_size}")


ROWS = (Rows("gsm_symbolic", 8), Rows("arithmetic", 16))


class Trained:
    """One variant with its model: a call is an optimizer step on its next batch, as Lightning takes it."""

    def __init__(self, plan: Plan, policy: Policy, frozen: Mapping[str, Any]) -> None:
        self.plan, self.device = plan, device()
        self.module: QTargetModule = build.module(plan, policy.to(self.device), frozen).to(self.device)
        self.module.on_fit_start()
        batches: list[Batch] = list(build.data(plan).train_dataloader())
        self.batches: Iterator[Batch] = itertools.cycle(batches)
        self.optimizer: torch.optim.Optimizer = self.module.configure_optimizers()["optimizer"]
        self.said = self.choose_engine(batches[0].to(self.device)).description

    def choose_engine(self, batch: Batch) -> Engine:
        """As a run of this length chooses it."""
        engine = self.plan.engine
        if engine.compiled is None:
            with autocast():
                engine = by_trial(self.module, batch, self.plan.scored)
        self.module.compiled = bool(engine.compiled)
        return engine

    def __call__(self) -> None:
        self.loss(next(self.batches)).backward()
        self.clip()
        self.update()

    def loss(self, batch: Batch) -> Tensor:
        with autocast():
            return self.module.training_step(batch.to(self.device), 0)

    def clip(self) -> None:
        self.module.configure_gradient_clipping(self.optimizer, self.plan.cfg.trainer.clip)

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast() -> AbstractContextManager[Any]:
    return torch.autocast(device().type, torch.bfloat16)


def trained(overrides: Sequence[str], share: Trained | None = None) -> Trained:
    """A variant ready to train, by the project's own path; `share`: take its policy and optimizer, not new ones."""
    plan = make_plan(RunConfig.compose([*SETTING, *overrides]))
    policy, frozen = build.load_models(plan)
    made = Trained(plan, share.module.policy if share else policy, frozen)
    made.optimizer = share.optimizer if share else made.optimizer
    return made


def all_trained(names: Sequence[str], overrides: Sequence[str]) -> dict[str, Trained]:
    """name → variant. Full fine-tunings share one policy and optimizer: a step takes as long on any weights."""
    made: dict[str, Trained] = {}
    for name in names:
        timing.progress(f"loading {name}")
        variant = VARIANTS[name]
        lora = any(override in variant.overrides for override in LORA)
        made[name] = trained((*overrides, *variant.overrides), None if lora else made.get("sft"))
    return made


def measure(rows: Rows, rounds: int, names: Sequence[str] = tuple(VARIANTS), more: Sequence[str] = ()) -> list[Row]:
    """Median seconds of a step, and its ratio to plain SFT's in the same round, on the same batch."""
    variants = all_trained(names, (*rows.overrides, *more))
    taken = timing.in_turn(variants, rounds, title=f"(b) {rows.data}")
    return [row(name, taken, variants[name].said) for name in names]


def row(name: str, taken: timing.Times, said: str) -> Row:
    base, aim = VARIANTS[name].base, VARIANTS[name].aim
    return {
        "variant": name,
        "loss": said,
        "s/step": statistics.median(taken[name]),
        "beside": base,
        "ratio": timing.ratio(taken, name, base) if base in taken else None,
        "aim": aim,
    }


def section(quick: bool) -> Section:
    rounds = 2 if quick else 5
    tables = [(caption(rows, rounds), measure(rows, rounds, more=engine(quick))) for rows in ROWS]
    return Section("b", "An optimizer step under each target", tables)


def engine(quick: bool) -> tuple[str, ...]:
    """The loss as a run of ordinary length has it: `loss.compile=auto` goes by that."""
    return ("loss.compile=off",) if quick else ("trainer.max_steps=1000",)


def caption(rows: Rows, rounds: int) -> str:
    return (
        f"SmolLM2-135M, all weights trained (LoRA rows aside), bf16-mixed, {rows.batch_size} rows of "
        f"`data={rows.data}` a step, the teacher the same model. A step is forward, loss, backward, clipping "
        "and AdamW; caches are built beforehand. Each variant took a step in turn on the same batch; the "
        f"ratio to the variant named beside it is the median of {rounds} rounds."
    )
