"""A run that can be stopped: when its state is saved, and how it goes on from one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import lightning as L

from qtarget.data.batch import Batch
from qtarget.data.module import Position, SFTData
from qtarget.errors import QTargetError
from qtarget.signals import Stop, Terminated
from qtarget.train.lightning_module import QTargetModule
from qtarget.train.state import State, random_state, restore, save, save_trained


class Journal(Protocol):
    """The record, as far as a state refers to it."""

    def position(self) -> dict[str, Any]: ...
    def settle(self) -> None: ...


class StateKeeper(L.Callback):
    """Saves the state every `every` optimizer steps and after the last (None: only where the run is stopped).

    at_end: whether being stopped saves it too; with neither it is only one of several ranks' that look at `state`.
    holder: the folder of states. state: the one that this run goes on from.
    It stands after whoever logs a step, and before whoever looks at the policy between two: a look that was cut short
    is taken again.
    """

    def __init__(
        self, holder: Path, every: int | None, journal: Journal, stop: Stop, state: State | None = None, *, at_end: bool
    ) -> None:
        self.holder, self.every, self.journal, self.stop, self.state = holder, every, journal, stop, state
        self.at_end = at_end
        self._step = 0
        self._unsaved: Callable[[], None] | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.state is None:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(pl_module, QTargetModule)
        assert isinstance(data, SFTData)
        restore(self.state, trainer, pl_module)
        continue_loops(trainer, self.state.step, data.go_on(self.state.step))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        self.stop.listen()  # Lightning would leave between two micro-batches of a step

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self.stop.deferred = True
        self._unsaved = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._step:
            return  # of this step there is more to come
        assert isinstance(pl_module, QTargetModule)
        self._step = step
        if self.every or self.at_end:
            facts = {"step": step, **self.journal.position()}
            self._unsaved = partial(save, self.holder, trainer, pl_module, random_state(pl_module.device), facts)
        if self.every and (step % self.every == 0 or step == trainer.max_steps):
            self._save()
        self.stop.release()

    def _save(self) -> None:
        if self._unsaved is not None:
            self.journal.settle()
            self._unsaved()
        self._unsaved = None

    @property
    def training_was_complete(self) -> bool:
        """Whether this attempt had no step left to take."""
        return self.state is not None and self.state.is_over

    def outlast(self, trainer: L.Trainer, module: QTargetModule) -> None:
        """Keep what training has come to: an evaluation that fails can be done again. Collective."""
        facts = {"step": trainer.global_step, **self.journal.position()}
        self.journal.settle()
        try:
            save_trained(self.holder, trainer, module, facts)
        except QTargetError as error:  # the checkpoint may still fit, and the evaluation succeed
            warnings.warn(f"{error}: if the evaluation fails, the same command trains again", stacklevel=2)

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """Where the run is stopped between two steps, or in what comes after the last, its state is saved."""
        try:
            yield
        except (Terminated, KeyboardInterrupt):
            if self.at_end:
                self._save()
            raise


def continue_loops(trainer: L.Trainer, step: int, position: Position) -> None:
    """Lightning's loops as they stand after `step` optimizer steps; they are made to be loaded from its checkpoints."""
    loop = trainer.fit_loop
    started = position.epoch + (position.batches > 0)
    for epochs in (loop.epoch_progress.total, loop.epoch_progress.current):
        epochs.load_state_dict(_counts(started, position.epoch))
    batches, steps = (
        loop.epoch_loop.batch_progress,
        loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step,
    )
    for counted, number in ((batches.total, position.total), (batches.current, position.batches)):
        counted.load_state_dict(_counts(number, number))
    steps.total.load_state_dict({"ready": step, "completed": step})
    loop.epoch_loop._batches_that_stepped = step
    if position.batches:
        loop.restarting = True  # in the middle of an epoch


def _counts(started: int, done: int) -> dict[str, int]:
    return {"ready": started, "started": started, "processed": done, "completed": done}
