"""The trial that decides whether the loss of a run is compiled, and the callback that holds the decision."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, cast

import lightning as L
import torch

from qtarget.data.batch import Batch
from qtarget.errors import QTargetError
from qtarget.math.scoring import Block
from qtarget.model.sharding import reshard
from qtarget.parallel import is_rank_zero
from qtarget.train.compiling import Engine, Figures, by_figures, compiler, without_trial
from qtarget.train.compiling_figures import Scored
from qtarget.train.lightning_module import QTargetModule

WARM_UP, ROUNDS = 2, 7
"""Rounds that don't count, and that do."""
Agree = Callable[[Any], Any]
"""The value of rank 0, on every rank."""
FEW = Engine(False, "eager: its first rows have too few tokens for a trial")


class LossEngine(L.Callback):
    """Whether the loss is compiled: as `engine` says, or by a trial before the first step. It is part of a run's state.

    Rank 0 decides for all. announce: is given the engine once it is decided, and where a run that goes on keeps another
    than it would have now. Stands before the callback that measures training, which a trial is no part of.
    """

    def __init__(self, engine: Engine, scored: Scored, announce: Callable[[Engine], None]) -> None:
        self.engine, self.scored, self.announce = engine, scored, announce
        self._announced = engine

    def state_dict(self) -> dict[str, Any]:
        return {} if self.engine.compiled is None else asdict(self.engine)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.engine = Engine(**state_dict)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.engine = trainer.strategy.broadcast(self.engine)
        if self.engine.compiled and pl_module.device.type == "cpu" and compiler() is None:
            raise QTargetError(
                "the loss of this run is compiled, which needs a C++ compiler (g++, clang++ or CXX=…), and there is "
                "none: install one, or set resume=never to start afresh"
            )
        self._take(cast(QTargetModule, pl_module))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if self.engine.compiled is not None:
            return
        module = cast(QTargetModule, pl_module)
        with trainer.precision_plugin.train_step_context():
            self.engine = by_trial(module, batch, self.scored, trainer.strategy.broadcast)
        self._take(module)

    def _take(self, module: QTargetModule) -> None:
        module.compiled = bool(self.engine.compiled)
        if self.engine != self._announced:
            self.announce(self.engine)
        self._announced = self.engine


def by_trial(module: QTargetModule, batch: Batch, scored: Scored, agree: Agree = lambda value: value) -> Engine:
    """Time the loss on the first tokens of a batch, compiled too where that may pay, and keep what it took.

    Draws no random number that later steps see. Collective.
    """
    with torch.random.fork_rng(devices=[module.device] if module.device.type == "cuda" else []):
        block = module.first_block(batch)
        reshard(module.policy)
        decided: Engine | None = agree(_without_compiling(block, scored))
        return decided or cast(Engine, agree(_by_compiling(block, scored)))


def _without_compiling(block: Block | None, scored: Scored) -> Engine | None:
    if block is None or len(block.logits) == 1:  # which is never compiled
        return FEW
    return without_trial(seconds_a_token(block)[False], scored.tokens, scored.longest_compile)


def _by_compiling(block: Block | None, scored: Scored) -> Engine:
    if block is None or len(block.logits) == 1:  # on a rank that doesn't decide
        return FEW
    try:
        figures = trial(block)
    except torch._dynamo.exc.TorchDynamoException as error:
        first, *_ = str(error).strip().splitlines() or [type(error).__name__]
        return Engine(False, f"eager: torch.compile can't take this design ({first})")
    if is_rank_zero():
        scored.keep(figures)
    return by_figures(figures, scored.tokens)


def trial(block: Block) -> Figures:
    """Seconds of compiling, and of a token either way."""
    compiling = _seconds(block, compiled=True)
    each = seconds_a_token(block, (False, True))
    return Figures(compiling, each[False], each[True])


def seconds_a_token(block: Block, ways: tuple[bool, ...] = (False,)) -> dict[bool, float]:
    """By way, compiled or not: the medians of ROUNDS in which they took turns."""
    taken: dict[bool, list[float]] = {way: [] for way in ways}
    for _ in range(WARM_UP + ROUNDS):
        for way in ways:
            taken[way].append(_seconds(block, compiled=way) / len(block.logits))
    return {way: statistics.median(seconds[WARM_UP:]) for way, seconds in taken.items()}


def _seconds(block: Block, *, compiled: bool) -> float:
    copy = block.logits.clone()
    _wait_for(copy.device)
    start = time.perf_counter()
    block.score(copy, compiled=compiled)
    _wait_for(copy.device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
