"""Where the weights of a reference lie, spread over ranks or in the machine's memory, changes no number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from training import eight_rows
from warm import fork_ranks

from qtarget.config.composing import compose_config
from qtarget.config.identity import config_hash
from qtarget.config.run_config import RunConfig, TrainerConfig
from qtarget.data.batch import Collate
from qtarget.errors import QTargetError
from qtarget.math.loss import IGNORE
from qtarget.math.tokens import CHUNK_BYTES
from qtarget.model import provide
from qtarget.model.frozen import FrozenModel, Snapshot
from qtarget.model.sharding import decoder_layers, is_sharded, whole
from qtarget.run import build, estimate, ranks
from qtarget.run.plan import Plan, make_plan

TINY = ["model=tiny", "data.rows=8", "data.heldout_rows=2", "trainer.accelerator=cpu", "trainer.max_steps=2"]
TEACHER = ["target=kd", "reference@references.teacher=frozen", "references.teacher.name=tiny"]
FLAWED = ["reference/flaw@references.teacher.flaw=noisy_weights"]  # no policy: what it says is its own
TWO = ["trainer.devices=2", "trainer.strategy=fsdp2"]
PLACES = {
    "sharded": [],
    "sharded, offloaded": ["references.teacher.offload=true"],
    "whole": ["references.teacher.shard=false"],
    "bf16 products": ["trainer.precision=bf16-mixed"],
}


def planned(*more: str) -> Plan:
    return make_plan(RunConfig.compose([*TINY, *TEACHER, *FLAWED, "trainer.precision=32-true", *more]))


def teacher(plan: Plan) -> FrozenModel:
    _, frozen = build.load_models(plan, ["teacher"])
    made = frozen["teacher"]
    assert isinstance(made, FrozenModel)
    return made.to(torch.device("cpu"))


def says(frozen: FrozenModel, mixed: bool = False) -> torch.Tensor:
    """log π [N, V] at the supervised tokens of eight rows."""
    rows = []
    for start in (0, 4):
        batch = Collate(256)(eight_rows().train[start : start + 4])  # all of them on every rank
        kept = batch.labels.flatten() != IGNORE
        labels = batch.labels.flatten()[kept]
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            rows.append(frozen.exact(batch).select(kept).at(labels, torch.empty(len(labels), 260)).logp)
    return torch.cat(rows)


def read_in_every_place(folder: str) -> None:
    """On each of two ranks: what the teacher says, and how many of its weights this rank holds."""
    read: dict[str, Any] = {}
    for name, more in PLACES.items():
        frozen = teacher(planned(*TWO, *more))
        held = sum(
            weight.to_local().numel() if is_sharded(frozen.policy) else weight.numel()  # type: ignore[operator]
            for weight in frozen.policy.parameters()
        )
        read[name] = {"held": held, "says": says(frozen, "bf16" in name)}
    read["snapshot"] = renewed()
    torch.save(read, f"{folder}/{dist.get_rank()}.pt")


def renewed() -> dict[str, Any]:
    """A sharded snapshot, read and then renewed from the sharded policy, which has moved meanwhile."""
    plan = planned(*TWO, "target=psft")
    policy, frozen = build.load_models(plan)
    old = frozen["old"]
    assert isinstance(old, Snapshot)
    build.shard(policy, build.all_ranks("cpu"))
    before = says(old)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.mul_(1.5)
    old.renew(policy, 0)
    weights = torch.cat([whole(weight).flatten() for weight in old.policy.parameters()])
    expected = torch.cat([whole(weight).flatten() for weight in policy.parameters()])
    return {
        "before": before,
        "says": says(old),
        "weights": weights,
        "expected": expected,
        "sharded": is_sharded(old.policy),
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        fork_ranks(patch)
        ranks.start(2, read_in_every_place, str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", PLACES)
def test_two_ranks_read_what_one_reads_wherever_the_weights_lie(two: list[dict[str, Any]], name: str) -> None:
    mixed = "bf16" in name
    alone = teacher(planned(*PLACES[name]) if mixed else planned())
    expected = says(alone, mixed)
    for rank in two:
        assert torch.equal(rank[name]["says"], expected)
    every = sum(weight.numel() for weight in alone.policy.parameters())
    held = [rank[name]["held"] for rank in two]
    assert held == [every] * 2 if name == "whole" else sum(held) == every


def test_a_sharded_snapshot_is_renewed_shard_by_shard(two: list[dict[str, Any]]) -> None:
    for rank in two:
        old = rank["snapshot"]
        assert old["sharded"]
        assert torch.equal(old["weights"], old["expected"])
        assert not torch.allclose(old["says"], old["before"])


def test_layers_that_are_offloaded_say_the_same_and_lie_elsewhere() -> None:
    frozen = teacher(planned("references.teacher.offload=true"))
    assert all(weight.is_meta for layer in decoder_layers(frozen.policy) for weight in layer.parameters())
    assert torch.equal(says(frozen), says(teacher(planned())))


def test_places_that_cannot_be_are_refused_before_anything_is_loaded() -> None:
    with pytest.raises(QTargetError, match=r"references\.teacher\.shard=true .* trainer\.strategy=auto on 1 devices"):
        RunConfig.compose([*TINY, *TEACHER, "references.teacher.shard=true"])
    with pytest.raises(QTargetError, match=r"references\.teacher\.shard must be one of"):
        RunConfig.compose([*TINY, *TEACHER, "references.teacher.shard=2"])


def test_where_weights_lie_is_no_part_of_a_runs_identity() -> None:
    """shard and offload change no number; the dtype does."""

    def identity(*more: str) -> str:
        return config_hash(compose_config("train", [*TINY, *TEACHER, *TWO, *more]))

    plain = identity()
    assert identity("references.teacher.shard=true", "references.teacher.offload=true") == plain
    assert identity("references.prior.shard=false", "references.old.shard=false") == plain
    assert identity("references.teacher.dtype=bfloat16") != plain


def test_a_dry_run_counts_what_of_a_reference_lies_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A share of its layers, one gathered layer, and embeddings, norm and head whole; offloaded only the latter two."""
    alone = planned("eval.kl_prior=false")
    model = provide.outline(alone.model, 260)
    layers = [sum(weight.numel() for weight in layer.parameters()) for layer in model.decoder.layers]
    every = sum(weight.numel() for weight in model.parameters())
    outside = every - sum(layers)

    def copy(*more: str) -> int:
        return estimate._copy(planned("eval.kl_prior=false", *more), "teacher")

    assert copy() == 4 * every
    assert copy("references.teacher.dtype=bfloat16") == 2 * every
    assert copy(*TWO) == 4 * (outside + max(layers) + sum(layers) // 2)
    assert copy(*TWO, "references.teacher.shard=false") == 4 * every
    offloaded = planned("eval.kl_prior=false", "references.teacher.offload=true")
    assert estimate._copy(offloaded, "teacher") == 4 * every  # on a CPU both are one memory
    monkeypatch.setattr(TrainerConfig, "on_gpu", True)
    assert estimate._copy(offloaded, "teacher") == 4 * (outside + max(layers))


def test_a_dry_run_counts_products_in_bf16_as_they_are_held() -> None:
    """Linear layers but the head, as `cast_products` casts them: 2 bytes a weight."""
    plan = planned("trainer.precision=bf16-mixed", "eval.kl_prior=false")
    held = teacher(plan).policy
    assert estimate._copy(plan, "teacher") == sum(weight.nbytes for weight in held.parameters())
    assert estimate._memory(plan, provide.outline(plan.model, 260)) > 4 * CHUNK_BYTES


def test_a_model_in_bfloat16_rotates_by_frequencies_in_fp32(tmp_path: Path) -> None:
    """module.to(bfloat16), as of Lightning's precision=bf16-true, rounds them too: long texts are read otherwise."""
    provide.load_policy(provide.ModelSource("tiny"), 260).lm.save_pretrained(tmp_path)
    policy = provide.load_policy(provide.ModelSource(str(tmp_path)), 260, dtype="bfloat16")
    assert policy.lm.dtype == torch.bfloat16
    exact = policy.lm.model.rotary_emb.inv_freq
    assert exact.dtype == torch.float32
    assert not torch.equal(exact, exact.bfloat16().float())
    rounded = policy.lm.to(torch.bfloat16).model.rotary_emb.inv_freq
    assert rounded.dtype == torch.bfloat16
