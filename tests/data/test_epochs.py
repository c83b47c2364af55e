"""What is said of steps, rows and epochs is what training reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain, count, islice, product

import pytest
import torch

from qtarget.config.run_config import RunConfig
from qtarget.data.batch import Collate
from qtarget.data.epochs import EpochPlan
from qtarget.data.example import Example
from qtarget.data.lightning_data import FilledRows, ResumableSampler, SFTData
from qtarget.run.plan import Plan, make_plan

LINE = re.compile(r"(\d+) steps × (\d+) rows = ([\d.e+]+) epochs of (\d+) rows")


def steps_of_samplers(epoch_plan: EpochPlan) -> Iterator[list[int]]:
    """The rows of each step over all ranks that are taught, as the samplers that training reads by hand them out."""
    rows, per_step = epoch_plan.rows, epoch_plan.batch_size * epoch_plan.accumulate
    for epoch in count():
        ranks = [ResumableSampler(range(rows), epoch_plan.world, rank, seed=1) for rank in range(epoch_plan.world)]  # type: ignore[arg-type]
        for sampler in ranks:
            sampler.set_epoch(epoch)
        shares = [list(sampler) for sampler in ranks]
        assert len(set(map(len, shares))) == 1
        for start in range(0, len(shares[0]), per_step):
            yield sorted(row for share in shares for row in share[start : start + per_step] if row < rows)


def rows_of_steps(epoch_plan: EpochPlan, steps: int) -> list[int]:
    return [len(rows) for rows in islice(steps_of_samplers(epoch_plan), steps)]


@pytest.mark.parametrize("rows", [5, 24, 41])
def test_a_step_reads_the_same_rows_on_any_number_of_ranks(rows: int) -> None:
    """Each row of an epoch once, whether their number divides or not."""
    one = EpochPlan(rows, batch_size=2, accumulate=4)
    expected = list(islice(steps_of_samplers(one), 2 * one.steps + 1))
    assert sorted(chain.from_iterable(expected[: one.steps])) == list(range(rows))
    for batch_size, accumulate, world in ((2, 2, 2), (1, 4, 2), (2, 1, 4), (1, 1, 8)):
        several = EpochPlan(rows, batch_size, accumulate, world)
        assert several.steps == one.steps
        assert list(islice(steps_of_samplers(several), len(expected))) == expected


def test_a_row_that_fills_up_an_epoch_teaches_nothing() -> None:
    example = Example([1, 2, 3], [False, True, True], {"wrong": [False, True, False]}, row=0, weights=[0.0, 1.0, 0.5])
    for row in (example, (example, example)):
        filled = FilledRows([row])  # type: ignore[list-item]
        assert len(filled) == 1
        assert filled[0] is row
        real, empty = (Collate(0)([filled[index]]) for index in (0, 1))  # type: ignore[list-item]
        assert torch.equal(real.input_ids, empty.input_ids)
        assert (real.supervised > 0, empty.supervised, empty.sequences) == (True, 0, 0)


SIZES = list(product((1, 5, 7, 24, 40, 41), (1, 2, 3, 8, 16), (1, 2, 8), (1, 2, 3)))


@pytest.mark.parametrize("steps", [1, 2, 4, 10, 31])
def test_rows_and_epochs_are_those_the_samplers_hand_out(steps: int) -> None:
    for sizes in SIZES:
        epoch_plan = EpochPlan(*sizes)
        taken = rows_of_steps(epoch_plan, steps)
        assert epoch_plan.rows_read(steps) == sum(taken), sizes
        assert epoch_plan.epochs(steps) == pytest.approx(sum(taken) / epoch_plan.rows)
        assert epoch_plan.epoch_ends(steps) == 0 or epoch_plan.rows_of_last_step in taken


@pytest.mark.parametrize("steps", [1, 2, 4, 10, 31])
def test_steps_times_rows_is_epochs_times_rows(steps: int) -> None:
    """Within 4 % for whatever doesn't divide: rows a step are whole numbers, and epochs have three digits."""
    for sizes in SIZES:
        words = EpochPlan(*sizes).in_words(steps, f"{sizes[0]} rows")
        line = LINE.search(words)
        assert line, words
        taken, rows, epochs, held = map(float, line.groups())
        assert taken * rows == pytest.approx(epochs * held, rel=0.04), words


@pytest.mark.parametrize(
    ("sizes", "steps", "words"),
    [
        ((40, 16, 8), 4, "4 steps × 40 rows = 4 epochs of 40 rows"),
        ((40, 16, 1), 10, "10 steps × 14 rows = 3.4 epochs of 40 rows"),  # 16, 16 and 8 an epoch
        ((64, 16, 2), 10, "10 steps × 32 rows = 5 epochs of 64 rows"),
        ((41, 4, 1, 2), 6, "6 steps × 7 rows = 1 epochs of 41 rows"),  # of the last step one rank has a row
        ((100, 16, 2), 3, "3 steps × 32 rows = 0.96 epochs of 100 rows"),
        ((10, 4, 1), 7, "7 steps, 2.4 epochs: 5 steps × 4 rows = 2 epochs of 10 rows and 2 × 2 rows = 0.4"),
        ((40, 16, 8), 0, "0 steps × 128 rows = 0 epochs of 40 rows"),
    ],
)
def test_the_line_says_what_a_step_reads(sizes: tuple[int, ...], steps: int, words: str) -> None:
    assert EpochPlan(*sizes).in_words(steps, f"{sizes[0]} rows") == words


def test_why_a_step_is_short_is_said() -> None:
    assert EpochPlan(40, 16, 8).why(4) == "; an epoch's last step ends with it and reads 40 rows instead of 128"
    assert EpochPlan(41, 41, 1, 2).why(1) == "; an epoch's last step ends with it and reads 41 rows instead of 82"
    assert EpochPlan(64, 16, 2).why(10) == EpochPlan(100, 16, 2).why(3) == EpochPlan(40, 16, 8).why(0) == ""


@pytest.mark.parametrize(("rows", "batch_size", "accumulate"), [(11, 4, 2), (5, 16, 8), (12, 3, 2)])
def test_the_loader_reads_as_many_rows_as_are_said(rows: int, batch_size: int, accumulate: int) -> None:
    example = Example([1, 2, 3], [False, True, True], {"wrong": [False] * 3}, row=0)
    data = SFTData([example] * rows, 0, batch_size=batch_size, accumulate=accumulate, seed=0)
    loader = data.train_dataloader()
    steps: list[int] = []
    for batch in (batch for _ in range(3) for batch in loader):
        assert batch.window
        steps += [0] * (batch.window.index == 0)
        steps[-1] += len(batch.labels)
    epoch_plan = EpochPlan(rows, batch_size, accumulate)
    assert [epoch_plan.rows_read(number + 1) for number in range(len(steps))] == [
        sum(steps[: n + 1]) for n in range(len(steps))
    ]


def plan(*given: str) -> Plan:
    sizes = ["data.rows=40", "data.heldout_rows=4", "trainer.batch_size=16"]
    return make_plan(RunConfig.compose(["target=sft", "model=tiny", *sizes, *given]))


def test_an_epoch_that_ends_within_the_accumulated_batches_is_said() -> None:
    extent = plan("trainer.max_steps=4", "trainer.accumulate=8").extent
    assert extent.startswith("4 steps × 40 rows = 4 epochs of 40 rows of ")
    assert extent.endswith("; an epoch's last step ends with it and reads 40 rows instead of 128")


def test_epochs_that_are_no_whole_steps_are_said_to_be_rounded_up() -> None:
    half = plan("trainer.max_steps=null", "trainer.epochs=0.5", "trainer.accumulate=8")
    assert half.epochs == 1.0
    assert "1 steps × 40 rows = 1 epochs of 40 rows" in half.extent
    assert half.extent.endswith("; trainer.epochs=0.5 is rounded up to whole steps")
    assert "rounded" not in plan("trainer.max_steps=null", "trainer.epochs=2").extent


def test_packed_rows_are_the_rows_of_the_line() -> None:
    packed = plan("trainer.max_steps=3", "trainer.batch_size=2", "data.packing=256")
    held = len(packed.prepared.rows)
    assert held < 40
    assert f" epochs of {held} rows that hold 40 demonstrations" in packed.extent
    line = LINE.search(packed.extent)
    assert line
    taken, rows, epochs, of = map(float, line.groups())
    assert taken * rows == pytest.approx(epochs * of, rel=0.04)
