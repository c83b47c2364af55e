"""Steps of an asked length: measured between two optimizer steps, for every design and however a step is cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from training import eight_rows, fit, live, tiny_policy
from worlds import few_at_once, load_design

from qtarget.cli import run as qtarget_cli
from qtarget.config.composing import options
from qtarget.config.run_config import RunConfig
from qtarget.data.lightning_data import SFTData
from qtarget.errors import QTargetError
from qtarget.model import provide
from qtarget.model.adapter import Lora
from qtarget.model.policy import Policy
from qtarget.run import estimate
from qtarget.run.plan import make_plan
from qtarget.train.lightning_module import QTargetModule
from qtarget.train.normed_adamw import NormedAdamW, norm
from qtarget.train.optim import AdamW

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")  # Lightning 2.6 on torch 2.13's pytrees
STEPS, ASKED = 4, 0.003
SHARES = (0.5, 1.0, 1.0, 0.5)
"""Of the peak: two steps of warm-up, then a cosine from 1 that would reach 0 at the fifth."""
CHANGES: dict[str, dict[str, Any]] = {
    "profit": {"reliance.threshold": 0.004},  # a random model gives no label a tenth
    "beyond_log_threshold": {"reliance.threshold": 0.004},
}


class Walk(L.Callback):
    """The trained weights as one vector, before training and after every optimizer step."""

    def __init__(self) -> None:
        self.places: list[torch.Tensor] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._note(pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == len(self.places):
            self._note(pl_module)

    def _note(self, pl_module: Any) -> None:
        trained = [weight.detach() for weight in pl_module.policy.parameters() if weight.requires_grad]
        self.places.append(torch.cat([weight.flatten() for weight in trained]).double())

    @property
    def lengths(self) -> list[float]:
        """Of the steps, relative to where they started."""
        apart = torch.stack(self.places).diff(dim=0).norm(dim=1) / self.places[0].norm()
        return [float(length) for length in apart]


def walked(design: str, optim: AdamW, *, accumulate: int = 1, clip: float = 0.0, policy: Policy | None = None) -> Walk:
    path, references = Walk(), live(design)
    used = {role: references[role] for role in references}
    trained = QTargetModule(
        policy or tiny_policy().train(), load_design(design, **CHANGES.get(design, {})), used, optim, total_steps=STEPS
    )
    steps = {"batch_size": 4 // accumulate, "accumulate": accumulate, "steps": STEPS}
    fit(trained, **steps, callbacks=[path], gradient_clip_val=clip)
    return path


def equal(**changes: Any) -> AdamW:
    return AdamW(**{"lr": None, "update_norm": ASKED, "warmup": 0.5, "weight_decay": 0.1} | changes)


@pytest.mark.parametrize("design", few_at_once(options("target")))
def test_every_design_moves_the_weights_as_far_as_asked(design: str) -> None:
    path = walked(design, equal())
    assert path.lengths == pytest.approx([ASKED * share for share in SHARES], rel=1e-4)


@pytest.mark.parametrize(("accumulate", "clip"), [(2, 0.0), (4, 0.01), (1, 0.01)])
def test_however_the_step_is_cut_or_clipped(accumulate: int, clip: float) -> None:
    path = walked("dft", equal(), accumulate=accumulate, clip=clip)
    assert path.lengths == pytest.approx([ASKED * share for share in SHARES], rel=1e-4)


def test_at_equal_learning_rate_designs_move_unequally_far() -> None:
    """What the option is for: were this not so, the test above would show nothing."""
    plain = AdamW(lr=1e-3, warmup=0.5, eps=1e-3)
    sft, dft = (walked(design, plain).lengths for design in ("sft", "dft"))
    assert all(ours < 0.9 * theirs for ours, theirs in zip(dft, sft, strict=True))


def test_an_adapter_is_measured_by_its_own_weights() -> None:
    torch.manual_seed(0)
    policy = Lora(rank=4)(tiny_policy()).train()
    base = {name: weight.clone() for name, weight in policy.named_parameters() if not weight.requires_grad}
    path = walked("dft", equal(), policy=policy)
    assert path.lengths == pytest.approx([ASKED * share for share in SHARES], rel=1e-4)
    assert all(torch.equal(weight, base[name]) for name, weight in policy.named_parameters() if name in base)


def test_the_direction_is_that_of_adamw() -> None:
    """For the same gradients; weight decay is a part of the step, and so of its length."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(50, 7, generator=generator)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    settings: dict[str, Any] = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "fused": True}
    normed = NormedAdamW([{"params": [ours]}], ASKED, **settings)
    plain = torch.optim.AdamW([theirs], lr=1e-3, **settings)
    for _ in range(3):
        ours.grad, before = torch.randn(50, 7, generator=generator), start.clone()
        theirs.grad = ours.grad.clone()
        with torch.no_grad():
            ours.copy_(before)
            theirs.copy_(before)
        normed.step()
        plain.step()
        steps = [(weight.detach() - before).double() for weight in (ours, theirs)]
        assert float(torch.cosine_similarity(*(step.flatten() for step in steps), dim=0)) == pytest.approx(1, abs=1e-8)
        assert float(steps[0].norm() / start.norm()) == pytest.approx(ASKED, rel=1e-5)
        assert normed.rate == pytest.approx(1e-3 * float(steps[0].norm() / steps[1].norm()), rel=1e-4)


def test_the_logged_learning_rate_takes_the_same_step() -> None:
    optim = AdamW(lr=None, update_norm=ASKED, warmup=0.0)
    trained = QTargetModule(tiny_policy(), load_design("dft"), {}, optim, total_steps=1)
    optimizer = optim.configure(trained.policy.parameters(), 1)["optimizer"]
    batch = next(iter(SFTData(eight_rows().train, 256, batch_size=4, accumulate=1, seed=0).train_dataloader()))

    def one_step(policy: Policy, by: torch.optim.Optimizer) -> torch.Tensor:
        QTargetModule(policy, load_design("dft"), {}, optim, total_steps=1).training_step(batch, 0).backward()
        by.step()
        return torch.cat([weight.detach().flatten() for weight in policy.parameters()])

    ours = one_step(trained.policy, optimizer)
    metrics = optim.step_size_metrics(0, 1, optimizer)
    assert metrics["train/update_norm"] == ASKED
    other = tiny_policy()
    plain = AdamW(lr=metrics["train/lr"], warmup=0.0).configure(other.parameters(), 1)["optimizer"]
    torch.testing.assert_close(ours, one_step(other, plain), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_without_any_gradient_the_weights_stay_and_that_is_said(decay: float) -> None:
    weight = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = NormedAdamW([{"params": [weight]}], ASKED, weight_decay=decay)
    weight.grad = torch.zeros(3, 3)
    with pytest.warns(UserWarning, match="without a direction the weights stay"):
        optimizer.step()
    assert torch.equal(weight.detach(), torch.ones(3, 3))
    assert optimizer.rate == 0


def test_the_length_of_many_weights_is_summed_exactly() -> None:
    assert norm([torch.full((4_000_000,), 0.1), torch.full((5,), 0.1)]) == pytest.approx(
        (4_000_005 * float(torch.tensor(0.1)) ** 2) ** 0.5, rel=1e-9
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["optim.update_norm=0.001"], r"exactly one of optim\.lr and optim\.update_norm"),
        (["optim=equal_norm", "optim.lr=0.1"], r"exactly one of optim\.lr and optim\.update_norm"),
        (["optim.lr=null"], r"exactly one of optim\.lr and optim\.update_norm"),
        (["optim=equal_norm", "optim.update_norm=0"], r"optim\.update_norm must lie in \[1e-06, 1\]"),
        (["optim=equal_norm", "optim.update_norm=fast"], r"optim\.update_norm must lie in"),
        (["optim=equal_norm", "model.dtype=bfloat16"], r"weights in bfloat16 round most of it away"),
    ],
)
def test_what_can_not_be_is_said_before_training(given: list[str], message: str) -> None:
    with pytest.raises(QTargetError, match=message):
        make_plan(RunConfig.compose(["model=tiny", "data.rows=8", "data.heldout_rows=2", *given]))


def test_a_dry_run_counts_the_copy_of_the_weights() -> None:
    def memory(optim: str) -> int:
        plan = make_plan(RunConfig.compose(["model=tiny", "data.rows=8", "data.heldout_rows=2", optim]))
        return estimate._memory(plan, provide.outline(plan.model, 260))

    weights = sum(weight.numel() for weight in tiny_policy().parameters())
    assert memory("optim=equal_norm") - memory("optim=adamw") == 4 * weights


def test_a_run_records_both(workdir: Path) -> None:
    small = ["model=tiny", "data.rows=8", "data.heldout_rows=2", "trainer.max_steps=4", "trainer.log_every=1"]
    assert (
        qtarget_cli(
            ["train", *small, "eval.new_tokens=2", "optim=equal_norm", "optim.update_norm=0.001", "optim.warmup=0.5"]
        )
        == 0
    )
    (record,) = workdir.glob("outputs/runs/*/metrics.jsonl")
    lines = [line for line in map(json.loads, record.read_text().splitlines()) if "train/nll" in line]
    assert [line["train/update_norm"] for line in lines] == pytest.approx([1e-3 * share for share in SHARES])
    assert all(line["train/lr"] > 0 for line in lines)
