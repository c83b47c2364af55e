"""What happens beside the optimizer steps: measuring, logging, evaluating, showing progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import psutil
import torch

from qtarget.data.batch import Batch
from qtarget.math.schedule import scheduled
from qtarget.parallel import all_reduce_max, all_reduce_sum, rank_and_world
from qtarget.progress import Progress
from qtarget.train.lightning_module import QTargetModule
from qtarget.units import in_time

Log = Callable[[int, dict[str, float]], None]
"""(optimizer step, metrics by name)."""


class Meter(L.Callback):
    """Time and memory of training itself: seconds inside training batches, tokens read, the largest memory seen."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.tokens = 0
        self.peak_bytes = 0
        self._started = 0.0
        self._process = psutil.Process()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self._started = time.perf_counter()

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: torch.Tensor) -> None:
        self._sample(pl_module.device)  # activations are all alive here

    def on_before_zero_grad(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self._sample(pl_module.device)  # gradients and optimizer state are

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.seconds += time.perf_counter() - self._started
        self.tokens += batch.real_tokens

    def _sample(self, device: torch.device) -> None:
        used = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else self._process.memory_info().rss
        self.peak_bytes = max(self.peak_bytes, used)

    @property
    def tokens_per_second(self) -> float:
        """Of this rank so far; 0 before the first batch."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds, "tokens": self.tokens, "peak_bytes": self.peak_bytes}

    def load_states(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on from what ranks had measured: tokens add up, and the ranks read them at the same time."""
        self.tokens = sum(state["tokens"] for state in states)
        self.seconds = max((state["seconds"] for state in states), default=0.0)
        self.peak_bytes = max((state["peak_bytes"] for state in states), default=0)

    def metrics(self) -> dict[str, float]:
        """tokens/s counts the tokens the policy read (padding aside) on all ranks; the peak is that of the fullest
        device, or process. Collective.
        """
        if not self.seconds:
            return {}
        tokens = float(all_reduce_sum(torch.tensor(float(self.tokens))))
        seconds, peak_bytes = all_reduce_max(
            torch.tensor([self.seconds, self.peak_bytes], dtype=torch.float64)
        ).tolist()
        return {
            "train/tokens_per_second": tokens / seconds,
            "train/seconds": seconds,
            "train/peak_memory_gb": peak_bytes / 1e9,
        }


def tokens_seen(meter: Meter, module: QTargetModule) -> dict[str, float]:
    """What all ranks have trained on since the first step, earlier attempts included. Both are exact. Collective.

    train/tokens: all that the policy read, padding aside; train/supervised_tokens: those with a loss.
    """
    counts = torch.tensor([meter.tokens, module.whole_run.tokens], dtype=torch.int64)
    tokens, supervised = all_reduce_sum(counts).tolist()
    return {"train/tokens": float(tokens), "train/supervised_tokens": float(supervised)}


class StepLogger(L.Callback):
    """Logs every `every` optimizer steps, and after the last one, the means over the steps since it last logged.

    meter: stands before it among the callbacks.
    """

    def __init__(self, log: Log, every: int, meter: Meter) -> None:
        self.log_metrics, self.every, self.meter = log, every, meter
        self._logged = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._logged = trainer.global_step  # by an earlier attempt, where there was one

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._logged or (step % self.every and step != trainer.max_steps):
            return
        assert isinstance(pl_module, QTargetModule)
        self._logged = step
        # computed, because the optimizer already holds the next step's rate
        size = pl_module.optim.step_size_metrics(step - 1, pl_module.total_steps, trainer.optimizers[0])
        followed = scheduled(pl_module.design, pl_module.progress_at(step - 1))
        now = {f"target/{field}": value for field, value in followed}
        means, detected = pl_module.recent.pop(), pl_module.recent_detection.pop()
        self.log_metrics(step, means | detected | size | now | tokens_seen(self.meter, pl_module))


NOTABLE_SHARE, NOTABLE_SECONDS = 0.1, 10.0
"""Of the time of training: up to which evaluations between steps are no news."""


class PeriodicEvaluation(L.Callback):
    """Calls `evaluate()` before training, every `every` optimizer steps, and after the last; every=0: never.

    A resumed run evaluates the step that it resumes from first: the state was saved before that evaluation.
    """

    def __init__(self, evaluate: Callable[[], dict[str, float]], log: Log, every: int) -> None:
        self.evaluate, self.log_metrics, self.every = evaluate, log, every
        self.seconds = 0.0
        self._evaluated: int | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step:  # perhaps no step is left, and training does not start
            self._evaluate_if_due(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._evaluate_if_due(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._evaluate_if_due(trainer)

    def _evaluate_if_due(self, trainer: L.Trainer) -> None:
        step = trainer.global_step
        due = self.every and (step % self.every == 0 or step == trainer.max_steps)
        if due and step != self._evaluated:
            started = time.perf_counter()
            self.log_metrics(step, self.evaluate())
            self.seconds += time.perf_counter() - started
            self._evaluated = step

    def cost(self, training: float) -> str:
        """What evaluating took beside so many seconds inside training batches; empty for a tenth, or 10 s, and less."""
        share = self.seconds / (self.seconds + training) if self.seconds else 0.0
        if share <= NOTABLE_SHARE or self.seconds <= NOTABLE_SECONDS:
            return ""
        return (
            f"evaluations between steps took {in_time(self.seconds)}, {share:.0%} of training: a larger "
            "trainer.eval_every (0: only afterwards) or a smaller eval.problems_in_training makes it less"
        )

    def state_dict(self) -> dict[str, int | None]:
        return {"evaluated": self._evaluated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._evaluated = state_dict["evaluated"]


IN_PROGRESS = {"train/loss": "loss", "train/nll": "nll", "train/lr": "lr"}
VALIDATED = {"val/accuracy": "accuracy", "val/nll": "nll"}
"""Metrics that are shown beside the steps, and what they are called there."""


class LastMetrics:
    """What was measured last, in words: loss 0.52, nll 0.61, lr 0.0001, 1,234 tokens/s; val accuracy 0.41, nll 0.7.

    A validation of another step than that of the line has its own behind it: val nll 0.7 at step 200.
    """

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self._values: dict[str, float] = {}
        self._validated_at = 0

    def passing_on(self, log: Log) -> Log:
        """Takes note of what goes to `log`."""

        def noting(step: int, metrics: dict[str, float]) -> None:
            self._values |= metrics
            if VALIDATED.keys() & metrics.keys():
                self._validated_at = step
            log(step, metrics)

        return noting

    def at(self, step: int) -> str:
        """In the line of an optimizer step."""
        rate = self.meter.tokens_per_second * rank_and_world()[1]  # of this rank, and the others are as fast
        training = [*self._listed(IN_PROGRESS), *([f"{rate:,.0f} tokens/s"] if rate else [])]
        validated = self._listed(VALIDATED)
        when = "" if step == self._validated_at else f" at step {self._validated_at}"
        return "; ".join([", ".join(training), *([f"val {', '.join(validated)}{when}"] if validated else [])])

    def _listed(self, names: Mapping[str, str]) -> list[str]:
        return [f"{title} {self._values[name]:.4g}" for name, title in names.items() if name in self._values]


class ShowProgress(L.Callback):
    """How many optimizer steps are done, at which rate, and what was measured last."""

    def __init__(self, title: str, measured: LastMetrics) -> None:
        self.title, self.measured = title, measured
        self._shown: Progress | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._shown = Progress(self.title, trainer.max_steps, "steps")
        self._shown.start(trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        assert self._shown is not None
        self._shown.update(trainer.global_step, self.measured.at(trainer.global_step))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()  # Lightning tears nothing down after an exception

    def _stop(self) -> None:
        if self._shown is not None:
            self._shown.stop()
