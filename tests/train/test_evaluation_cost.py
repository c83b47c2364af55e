"""What evaluations between steps cost is measured, and said where it is worth knowing."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from qtarget.train.callbacks import PeriodicEvaluation


def evaluation(seconds: float) -> PeriodicEvaluation:
    made = PeriodicEvaluation(lambda: {}, lambda step, metrics: None, 20)
    made.seconds = seconds
    return made


@pytest.mark.parametrize(
    ("between", "training", "said"),
    [
        (0.0, 0.0, ""),
        (60.0, 600.0, ""),  # 9 %
        (70.0, 600.0, "took 70 s, 10% of training: a larger trainer.eval_every"),
        (9.0, 9.0, ""),  # half of it, and nobody waited
        (300.0, 300.0, "50% of training"),
    ],
)
def test_the_share_is_said_where_it_is_more_than_a_tenth(between: float, training: float, said: str) -> None:
    cost = evaluation(between).cost(training)
    assert said in cost
    assert bool(cost) == bool(said)


def test_only_the_time_inside_evaluations_counts() -> None:
    def slow() -> dict[str, float]:
        time.sleep(0.05)
        return {}

    made = PeriodicEvaluation(slow, lambda step, metrics: None, 2)
    trainer: Any = SimpleNamespace(max_steps=4, global_step=0)
    for step in (0, 1, 2, 2, 3, 4):
        trainer.global_step = step
        made.on_train_batch_end(trainer, trainer, None, trainer, 0)
    assert made.seconds >= 3 * 0.05
    evaluated = made.seconds
    trainer.global_step = 3
    made.on_train_batch_end(trainer, trainer, None, trainer, 0)
    assert made.seconds == evaluated
