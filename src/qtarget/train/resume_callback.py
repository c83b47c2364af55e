"""The callback that makes a run resumable: it saves the state between steps, and restores the one to resume from."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import lightning as L

from qtarget.data.batch import Batch
from qtarget.data.lightning_data import DataPosition, RunData
from qtarget.errors import QTargetError
from qtarget.parallel import rank_and_world
from qtarget.signals import Stop, Terminated
from qtarget.train.lightning_module import QTargetModule
from qtarget.train.resume_saved import ResumeState, restore
from qtarget.train.resume_state import capture, rng_state
from qtarget.train.resume_writer import StateWriter


class Journal(Protocol):
    """The record, as far as a state refers to it: how long its files are, and that they are on disk."""

    def offsets(self) -> dict[str, Any]: ...
    def settle(self) -> None: ...


class ResumeCallback(L.Callback):
    """Saves the run's state every `every` optimizer steps and after the last one; every=None: at no step.

    when_stopped: saves it where the run is stopped, too. holder: the folder of states. state: the one to resume from,
    None: start anew. Among callbacks it stands behind those that log a step and before those that evaluate: an
    evaluation that was cut short is done again.

    Several ranks agree after each step whether one of them was asked to stop, and stop after the same one.
    """

    def __init__(
        self,
        holder: Path,
        every: int | None,
        journal: Journal,
        stop: Stop,
        state: ResumeState | None = None,
        *,
        when_stopped: bool,
    ) -> None:
        self.holder, self.every, self.journal, self.stop, self.state = holder, every, journal, stop, state
        self.when_stopped = when_stopped
        self.writer = StateWriter(holder)
        self._step = 0
        self._unsaved: Callable[[], None] | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.state is None:
            return
        assert isinstance(pl_module, QTargetModule)
        restore(self.state, trainer, pl_module)
        set_loop_counters(trainer, self.state.step, _data(trainer).resume_at(self.state.step, self.state.facts))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        self.stop.listen()  # Lightning would leave between two micro-batches of a step
        self.stop.deferred = self.stop.deferred or not self._is_alone

    @property
    def _is_alone(self) -> bool:
        return rank_and_world()[1] == 1

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
            return  # a step has several micro-batches
        assert isinstance(pl_module, QTargetModule)
        self._step = step
        asked = self.writer.poll(self.stop.asked)
        if self.every or self.when_stopped:
            facts, drawn = {**self.journal.offsets(), **_data(trainer).saved(step)}, rng_state(pl_module.device)
            captured = partial(capture, trainer, pl_module, drawn)
            self._unsaved = partial(self.writer.save, step, captured, facts)
        if self.every and (step % self.every == 0 or step == trainer.max_steps):
            self._save()
        self._stop_where_asked(asked)

    def _stop_where_asked(self, asked: bool) -> None:
        """One process ends at once, also in what follows the step; several at the end of a step, all of them."""
        if self._is_alone:
            self.stop.release()
        elif asked:
            if self.when_stopped:
                self._save()
            self.writer.finish()
            raise Terminated("by SIGTERM")

    def _save(self) -> None:
        if self._unsaved is not None:
            self.journal.settle()
            self._unsaved()
        self._unsaved = None

    @property
    def training_was_complete(self) -> bool:
        """Whether an earlier attempt had taken all steps."""
        return self.state is not None and self.state.is_final

    def save_final(self, trainer: L.Trainer, module: QTargetModule) -> None:
        """Save the trained run, so that an evaluation that fails can be done again. Collective."""
        facts = {**self.journal.offsets(), **_data(trainer).saved(trainer.global_step), "over": True}
        self.journal.settle()
        captured = partial(capture, trainer, module, rng_state(module.device), final=True)
        try:
            self.writer.save(trainer.global_step, captured, facts)
            self.writer.finish()
        except QTargetError as error:  # the checkpoint may still fit, and the evaluation succeed
            warnings.warn(f"{error}: if the evaluation fails, the same command trains again", stacklevel=2)

    @contextmanager
    def save_when_stopped(self) -> Iterator[None]:
        """Saves the state where the run is stopped, between two steps or in what comes after the last."""
        try:
            yield
        except (Terminated, KeyboardInterrupt):
            if self.when_stopped and self._is_alone:
                self._save()
                self.writer.finish()
            raise
        finally:
            self.writer.close()


def _data(trainer: L.Trainer) -> RunData:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, RunData)
    return data


def set_loop_counters(trainer: L.Trainer, step: int, position: DataPosition) -> None:
    """Have Lightning's loops count on from `step` optimizer steps, as they do from a checkpoint of its own."""
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
