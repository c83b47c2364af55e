"""Telling wrong tokens from clean ones: the metrics against their definitions, and what a run records of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc
from worlds import World, load_design

import qtarget
from qtarget.cli import run as qtarget_cli
from qtarget.config.composing import options
from qtarget.math.loss import LossOutput, dense_loss
from qtarget.train.detection import NoiseDetection, auroc, average_precision, gradient_norm

SMALL = ["model=tiny", "trainer.max_steps=4", "trainer.log_every=2", "data.rows=48", "data.heldout_rows=4"]
SMALL += ["trainer.eval_every=0", "eval.new_tokens=4", "checkpoint.save=false"]


def drawn(seed: int, levels: int) -> tuple[Tensor, Tensor]:
    """Scores on so many levels, and which are positive."""
    generator = torch.Generator().manual_seed(seed)
    score = torch.randint(levels, (60,), generator=generator) / levels
    return score, torch.rand(60, generator=generator) < 0.3


def over_pairs(score: Tensor, positive: Tensor) -> float:
    """Every positive against every negative, ties half."""
    margins = score[positive][:, None] - score[~positive][None, :]
    return float(((margins > 0).double() + 0.5 * (margins == 0)).mean())


def over_thresholds(score: Tensor, positive: Tensor) -> float:
    """The precision of calling all that score as high as a positive, averaged over the positives."""
    called = score[None, :] >= score[positive][:, None]
    return float(((called & positive).sum(1) / called.sum(1)).mean())


@pytest.mark.parametrize("levels", [1, 2, 5, 10_000])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_auroc_is_a_count_over_pairs_with_ties_half(levels: int, seed: int) -> None:
    score, positive = drawn(seed, levels)
    assert auroc(score, positive) == pytest.approx(over_pairs(score, positive), abs=1e-6)
    assert auroc(-score, positive) == pytest.approx(1 - over_pairs(score, positive), abs=1e-6)


@pytest.mark.parametrize("levels", [1, 2, 5, 10_000])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_average_precision_is_the_mean_over_positives_of_the_precision_at_their_score(levels: int, seed: int) -> None:
    score, positive = drawn(seed, levels)
    assert average_precision(score, positive) == pytest.approx(over_thresholds(score, positive), abs=1e-6)


def test_scores_are_no_logits_to_be_squashed() -> None:
    """torchmetrics 1.9 puts scores beyond [0, 1] through a sigmoid: in float32 18 and 19 are then both 1."""
    nll, wrong = torch.tensor([18.0, 19.0, 20.0, 0.1]), torch.tensor([False, True, True, False])
    assert float(binary_auroc(nll, wrong.int())) == pytest.approx(0.75)
    assert auroc(nll, wrong) == average_precision(nll, wrong) == 1.0
    trust = torch.tensor([1e-9, 3e-9, 2e-9, 1.0])
    assert auroc(-trust, torch.tensor([True, False, True, False])) == 1.0
    assert auroc(torch.tensor([torch.inf, 3.0]), torch.tensor([True, False])) == 1.0


def test_scores_that_tell_nothing_and_everything() -> None:
    wrong = torch.tensor([True, False, False, True, False])
    assert auroc(torch.zeros(5), wrong) == 0.5
    assert average_precision(torch.zeros(5), wrong) == pytest.approx(0.4)
    assert auroc(wrong.float(), wrong) == average_precision(wrong.float(), wrong) == 1.0


@pytest.mark.parametrize("name", options("target"))
def test_the_gap_is_the_gradient_of_every_design(name: str) -> None:
    """2·|w|·gap = ‖∂loss/∂logits‖₁, by autograd."""
    world = World.random(3)
    logits = world.leaf()
    out = dense_loss(logits, world.labels, load_design(name), **world.given(name))
    out.total.backward()
    assert logits.grad is not None
    torch.testing.assert_close(gradient_norm(out), logits.grad.abs().sum(-1))


def measured(design: str, *, limit: int = 1 << 20, parts: int = 1, **references: Any) -> dict[str, float]:
    """What is found on 60 random tokens, a third of them wrong, that come in so many parts."""
    world = World.random(5, count=60, vocab=11)
    wrong = torch.rand(60, generator=torch.Generator().manual_seed(5)) < 1 / 3
    detection = NoiseDetection(limit)
    for rows in torch.arange(60).tensor_split(parts):
        detection.update(scored(world.at(rows), design), wrong[rows])
        assert sum(map(len, detection._stored)) <= limit
    return detection.compute()


def scored(world: World, design: str) -> LossOutput:
    references = world.references if design != "sft" else {}
    return dense_loss(world.logits, world.labels, load_design(design), references=references)


def test_plain_sft_trusts_all_alike() -> None:
    found = measured("sft")
    assert found["detection/auroc"] == 0.5
    assert found["detection/average_precision"] == pytest.approx(found["detection/wrong_share"])
    assert "detection/auroc_prior" not in found


def test_trust_that_is_a_probability_tells_what_the_probability_tells() -> None:
    """DFT's is the policy's, PriFT's the prior's."""
    dft, prift = measured("dft"), measured("prift_prob")
    for name in ("auroc", "average_precision"):
        assert dft[f"detection/{name}"] == pytest.approx(dft[f"detection/{name}_policy"], abs=1e-6)
        assert prift[f"detection/{name}"] == pytest.approx(prift[f"detection/{name}_prior"], abs=1e-6)
        assert prift[f"detection/{name}"] != pytest.approx(prift[f"detection/{name}_policy"], abs=1e-3)


def test_it_does_not_matter_how_tokens_come() -> None:
    assert measured("target_sft", parts=7) == pytest.approx(measured("target_sft"), abs=1e-12)


def test_memory_is_bounded_by_leaving_out_tokens_evenly() -> None:
    """Of 60 tokens at most 16 are kept: every fourth. What is summed is summed over all."""
    whole, thinned = measured("dft", parts=9), measured("dft", limit=16, parts=9)
    for name in ("detection/gradient_share", "detection/wrong_share"):
        assert thinned[name] == pytest.approx(whole[name])
    world = World.random(5, count=60, vocab=11)
    wrong = torch.rand(60, generator=torch.Generator().manual_seed(5)) < 1 / 3
    trust = scored(world, "dft").trust.float()
    assert thinned["detection/auroc"] == pytest.approx(over_pairs(-trust[::4], wrong[::4]), abs=1e-6)


def test_without_noise_there_is_nothing_to_detect() -> None:
    detection = NoiseDetection()
    assert detection.compute() == {}
    detection.update(scored(World.random(1), "dft"), torch.zeros(7, dtype=torch.bool))
    assert detection.pop() == {}
    detection.update(scored(World.random(1), "dft"), torch.arange(7) < 2)
    assert detection.pop()["detection/wrong_share"] == pytest.approx(2 / 7)
    assert detection.compute() == {}


def test_a_run_records_it_over_training_and_at_the_end(workdir: Path) -> None:
    designs = "sft,one_minus_prior"
    assert qtarget_cli(["train", "-m", f"target={designs}", *SMALL]) == 0
    results = [json.loads(path.read_text()) for path in workdir.glob("outputs/runs/*/result.json")]
    found = {result["name"]: result["metrics"] for result in results}
    assert found["sft"]["detection/auroc"] == 0.5
    assert "detection/auroc_prior" not in found["sft"]
    for metrics in found.values():
        detected = {name: value for name, value in metrics.items() if name.startswith("detection/")}
        assert {"detection/gradient_share", "detection/auroc_policy", "detection/average_precision"} <= set(detected)
        assert all(0 <= value <= 1 for value in detected.values())
    assert found["one_minus_prior"]["detection/auroc_prior"] > 0
    for path in workdir.glob("outputs/runs/*/metrics.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["step"] for line in lines if "detection/auroc" in line] == [2, 4]
    assert qtarget_cli(["compare", "outputs/runs", "--format", "md"]) == 0


def test_a_run_on_clean_rows_says_nothing_of_noise(workdir: Path) -> None:
    assert qtarget_cli(["train", *SMALL, "data/noise=none"]) == 0
    (path,) = workdir.glob("outputs/runs/*/result.json")
    assert not [name for name in json.loads(path.read_text())["metrics"] if name.startswith("detection/")]


def test_public_losses_say_what_the_prior_gives_the_label() -> None:
    world = World.random(2)
    out = qtarget.dense_loss(world.logits, world.labels, load_design("sft"), references=world.references)
    expected = -world.prior.gather(1, world.labels[:, None]).squeeze(1)
    torch.testing.assert_close(out.prior_nll, expected)
    assert dense_loss(world.logits, world.labels, load_design("sft")).prior_nll.isnan().all()
