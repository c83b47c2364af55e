"""Two ranks judge what one would: each prompt and row once, and every rank has all of it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from training import other_policy, tiny_policy

from qtarget.data.chat import ChatFormat
from qtarget.data.example import Demonstration
from qtarget.evaluate import generate, prompting
from qtarget.evaluate.heldout import Evaluation, Evaluator
from qtarget.evaluate.sampling import Sampling
from qtarget.evaluate.spreading import Ranks
from qtarget.model.builtin import tiny_tokenizer
from qtarget.model.frozen import FrozenModel
from qtarget.model.sharding import shard
from qtarget.run import ranks

WAYS = (("whole", None), ("sharded", None), ("sharded", False))
"""How the weights lie, and whether batches are refilled (None: as the model allows)."""
COUNTS = (5, 1)
"""Rows: an odd number, and one that leaves a rank without any."""


def rows(count: int) -> list[Demonstration]:
    entry = {"verifier": "reasoning_gym", "answer": "5", "metadata": {"source_dataset": "chain_sum"}}
    return [
        Demonstration(
            [{"role": "user", "content": "2+" * number + "3"}, {"role": "assistant", "content": "5" * (number + 1)}],
            row=number,
            entry=entry,
        )
        for number in range(count)
    ]


def evaluator(count: int) -> Evaluator:
    chat, made = ChatFormat(tiny_tokenizer()), rows(count)
    examples = [example for row in made for example in chat.encode(row)]
    return Evaluator(
        tiny_tokenizer(),
        made,
        examples,
        FrozenModel(tiny_policy()),
        partial(torch.autocast, "cpu", enabled=False),
        new_tokens=7,
        batch_size=2,
        sampling=Sampling(3, 1.0),
        retention=examples,
        retention_prior=FrozenModel(tiny_policy()),
    )


def evaluate_every_way(folder: str) -> None:
    """On each of two ranks: evaluations, and how many prompts this rank has answered."""
    results, answer = {}, generate.generate
    for weights, refilled in WAYS:
        policy = other_policy()
        if weights == "sharded":
            shard(policy, init_device_mesh("cpu", (2,)))
        for count in COUNTS:
            answered = 0

            def counted(policy: Any, prompts: Any, *, way: bool | None = refilled, **given: Any) -> Any:
                nonlocal answered
                answered += len(prompts)
                return answer(policy, prompts, refilled=way, **given)

            prompting.generate = counted
            results[weights, refilled, count] = (evaluator(count)(policy), answered)
    torch.save(results, f"{folder}/{dist.get_rank()}.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, tuple[Evaluation, int]]]:
    from warm import fork_ranks

    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        fork_ranks(patch)
        ranks.start(2, evaluate_every_way, str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.xdist_group("evaluating ranks")
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(("weights", "refilled"), WAYS)
def test_two_ranks_judge_what_one_would(two: Any, weights: str, refilled: bool | None, count: int) -> None:
    """To the last bit: batches that are read are the same, and sums are added in the same order."""
    expected = evaluator(count)(other_policy())
    for results in two:
        got, _ = results[weights, refilled, count]
        assert got.metrics == expected.metrics
        assert got.samples == expected.samples
        assert got.row_losses == expected.row_losses
        assert got.calibration == expected.calibration
    assert {"nll", "kl_prior", "ece", "accuracy", "retention/nll_drift"} <= set(expected.metrics)
    assert sum(results[weights, refilled, count][1] for results in two) == count  # each prompt is answered once


def test_shares_in_step_are_as_many_on_every_rank_and_what_was_done_twice_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for world in range(1, 5):
        for count in range(7):
            all_of_them = [Ranks(rank, world) for rank in range(world)]
            shares = [one.share(range(count), in_step=True) for one in all_of_them]
            assert {len(share) for share in shares} == {-(-count // world)}
            assert sorted(thing for one in all_of_them for thing in one.share(range(count))) == list(range(count))

            def gather(target: list[Any], own: Any, group: Any, shares: Any = shares) -> None:
                target[:] = shares

            monkeypatch.setattr(dist, "all_gather_object", gather)
            assert all_of_them[0].collected(shares[0], count) == list(range(count))
