"""Two processes take the step that one would: counts, rows and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import qtarget
from qtarget.data.batch import Batch
from qtarget.data.module import DataConfig, SFTData, prepare
from qtarget.data.sources.reasoning_gym import ReasoningGym
from qtarget.model.frozen import FrozenModel
from qtarget.model.policy import Policy
from qtarget.model.tiny import tiny_config, tiny_model, tiny_tokenizer
from qtarget.train.module import QTargetModule
from qtarget.train.optim import AdamW

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "tokens": ("dft", {}),
    "step statistics, kept tokens": ("rho1", {"reliance.source": "prior"}),
    "sequence statistics, weight sum": ("iw_sft", {"normalize": "weight_sum"}),
    "sequences": ("talr", {"normalize": "sequences"}),
}


def batches(batch_size: int, accumulate: int) -> list[Batch]:
    source = ReasoningGym("chain_sum", {"min_terms": 2, "max_terms": 4}, system="")
    prepared = prepare(DataConfig(source, rows=8, heldout_rows=2), tiny_tokenizer(), 1024)
    return list(SFTData(prepared.train, 256, batch_size=batch_size, accumulate=accumulate, seed=0).train_dataloader())


def gradient(micro_batches: list[Batch], accumulate: int, name: str, changes: dict[str, Any]) -> torch.Tensor:
    """As Lightning would: the mean over micro-batches of their losses' gradients."""
    policy = Policy(tiny_model(tiny_config(len(tiny_tokenizer()))), len(tiny_tokenizer()))
    prior = Policy(tiny_model(tiny_config(len(tiny_tokenizer()))), len(tiny_tokenizer()))
    with torch.no_grad():  # a prior that differs from the policy
        for parameter in prior.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    design = qtarget.load_design(name, **changes)
    module = QTargetModule(policy, design, {"prior": FrozenModel(prior)}, AdamW(), total_steps=1)
    for batch in micro_batches:
        share = module.step.share(batch)
        (module.token_loss(batch, share.statistics, share.token_scale).total / accumulate).backward()
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters() if parameter.grad is not None])


def worker(rank: int, world: int, folder: str, accumulate: int, case: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    mine = batches(batch_size=4 // accumulate, accumulate=accumulate)
    summed = gradient(mine, accumulate, *CASES[case])
    dist.all_reduce(summed)  # DDP averages over ranks
    found: dict[str, Any] = {
        "gradient": summed / world,
        "tokens": [batch.window.tokens for batch in mine if batch.window],
        "rows": sum(len(batch.labels) for batch in mine),
    }
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_ranks_take_the_step_of_one(tmp_path: Path, accumulate: int, case: str) -> None:
    mp.spawn(worker, args=(2, str(tmp_path), accumulate, case), nprocs=2)
    (whole,) = batches(batch_size=8, accumulate=1)
    expected = gradient([whole], 1, *CASES[case])
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["rows"] == 4
        assert set(found["tokens"]) == {whole.supervised}
        torch.testing.assert_close(found["gradient"], expected, atol=1e-6, rtol=1e-4)
