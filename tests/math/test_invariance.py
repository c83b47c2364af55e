"""One step is one step: however its rows are packed, wherever its references come from, whatever is trained.

That it doesn't depend on how it is cut into micro-batches is in test_train.py, on ranks in test_distributed.py, on
chunks in test_loss.py, on the compiler in test_compiled.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training import batches, close, eight_rows, live, module, one_step, other_policy, tiny_policy
from worlds import FEW_DESIGNS, NEEDS_TOP_K, few_at_once, load_design

import qtarget
from qtarget.config.composing import options
from qtarget.data.batch import Collate
from qtarget.data.module import Prepared
from qtarget.math.loss import IGNORE, linear_loss
from qtarget.math.target import needs
from qtarget.model.adapter import Lora
from qtarget.model.adapting import merge
from qtarget.model.cache import Cached, CachePlan
from qtarget.model.cache_build import ensure
from qtarget.model.cached_scores import Recipe
from qtarget.model.frozen import AdapterOff, Frozen, FrozenModel
from qtarget.model.policy import Policy, cast_products
from qtarget.train.lightning_module import QTargetModule

DESIGNS = options("target")
NORMALIZERS = [("profit", {"reliance.threshold": 0.004, "normalize": name}) for name in ("kept", "weight_sum")] + [
    ("dft", {"normalize": "sequences"}),
    ("talr", {"normalize": "sequences"}),
]
CASES: dict[str, tuple[str, dict[str, Any]]] = {design: (design, {}) for design in DESIGNS} | {
    f"{design} {' '.join(map(str, changes.values()))}": (design, changes) for design, changes in NORMALIZERS
}


# Packing


@pytest.mark.parametrize("case", few_at_once(CASES, (*FEW_DESIGNS, *list(CASES)[len(DESIGNS) :])))
def test_packed_rows_are_unpacked_rows(case: str) -> None:
    """Policy, prior and teacher see each demonstration by itself; gradients and logged means are the same."""
    design, changes = CASES[case]
    packed = eight_rows(packing=240)
    assert len(packed.rows) < 5
    (whole,), expected = batches(eight_rows(), batch_size=8), module(design, changes, **live(design))
    shared = batches(packed, batch_size=len(packed.rows))
    assert shared[0].window is not None
    assert shared[0].window.sequences == 8
    gradient, means = one_step(expected, [whole])
    got, got_means = one_step(module(design, changes, **live(design)), shared)
    close(got, gradient, 1e-4)
    close(got_means, means, 1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_are_unpacked_rows_under_either_attention(attention: str) -> None:
    packed, found = eight_rows(packing=240), []
    for rows in (batches(eight_rows(), batch_size=8), batches(packed, batch_size=len(packed.rows))):
        trained = module("sft")
        trained.policy.lm.set_attn_implementation(attention)
        found.append(one_step(trained, rows)[0])
    close(found[1], found[0], 1e-4)


def test_a_packed_row_as_it_was_written_down() -> None:
    prepared = eight_rows(packing=240)
    pack = prepared.rows[0]
    assert isinstance(pack, tuple)
    assert len(pack) > 1
    batch = Collate(256)([pack])
    assert batch.position_ids is not None
    start = 0
    for number, example in enumerate(pack):
        part = slice(start, start + len(example))
        assert batch.input_ids[0, part].tolist() == example.input_ids
        assert batch.position_ids[0, part].tolist() == list(range(len(example)))
        assert batch.sequence_ids[0, part].unique().tolist() == [number]
        labels = [ids if on else IGNORE for ids, on in zip(example.input_ids, example.supervised, strict=True)]
        assert batch.labels[0, part].tolist() == [*labels[1:], IGNORE]  # nobody's last token predicts another's first
        assert batch.columns["wrong"][0, part].tolist() == [*example.wrong[1:], False]
        start += len(example)
    kept = batch.labels[0] != IGNORE
    assert batch.label_indices[0][kept].tolist() == [e.first_label + index for e in pack for index in range(e.labels)]


def test_every_demonstration_is_packed_once() -> None:
    plain, packed = eight_rows(), eight_rows(packing=240)
    members = [example for pack in packed.rows if isinstance(pack, tuple) for example in pack]
    assert sorted(example.row for example in members) == sorted(example.row for example in plain.train)
    assert all(sum(map(len, pack)) <= 240 for pack in packed.rows if isinstance(pack, tuple))
    with pytest.raises(qtarget.QTargetError, match=r"data.packing must lie between the longest row \(\d+ tokens\)"):
        eight_rows(packing=10)


def test_packing_would_contaminate_with_a_mask_or_a_cache() -> None:
    """What keeps packed documents apart is that transformers is given positions and neither mask nor cache."""
    policy, seen = tiny_policy(), []
    policy.lm.get_decoder().register_forward_pre_hook(lambda _, __, given: seen.append(given), with_kwargs=True)
    (batch, *_) = batches(eight_rows(packing=240), batch_size=1)
    policy(batch.input_ids, batch.position_ids)
    assert seen[0]["use_cache"] is False
    assert "attention_mask" not in seen[0]


# Cached references


def cached(folder: Path, policy: Policy, prepared: Prepared, detail: str, dtype: str = "float32") -> Cached:
    recipe = Recipe(detail, topk=5, dtype=dtype, precision="32-true")
    plan = CachePlan(folder / detail, recipe, prepared.train, {"detail": detail}, {}, Collate(256))
    ensure(plan, lambda done: policy, lambda done: None, print)
    return Cached(plan)


@pytest.mark.parametrize("design", [name for name in DESIGNS if needs(load_design(name)).keys() - {"old"}])
def test_a_cached_reference_is_the_live_one(design: str, tmp_path: Path) -> None:
    """Hidden states for whatever looks at distributions, five scalars where the label's place is all that counts."""
    prepared, references = eight_rows(), live(design)
    gradient, means = one_step(module(design, **references), batches(prepared, batch_size=8))
    for role, detail in needs(load_design(design)).items():
        kept = "topk" if design in NEEDS_TOP_K else "label" if detail == "label" else "hidden"
        references[role] = cached(tmp_path, other_policy(), prepared, kept)
    got, got_means = one_step(module(design, **references), batches(prepared, batch_size=2, accumulate=4))
    close(got, gradient, 1e-5)
    close({name: value for name, value in got_means.items() if name != "target/kl_prior"}, without_drift(means), 1e-5)


def without_drift(means: dict[str, float]) -> dict[str, float]:
    """Drift from the prior takes its whole distribution, which label scalars don't hold."""
    return {name: value for name, value in means.items() if name != "target/kl_prior"}


@pytest.mark.parametrize("kind", ["frozen", "adapter_off", "hidden", "hidden bf16", "topk", "label"])
def test_a_reference_that_is_the_policy_diverges_nowhere(kind: str, tmp_path: Path) -> None:
    """At every position, packed and not: a mask or a cache that is off by one token would show."""
    for prepared in (eight_rows(), eight_rows(packing=240)):
        policy = tiny_policy()
        reference: Frozen
        if kind == "frozen":
            reference = FrozenModel(tiny_policy())
        elif kind == "adapter_off":
            reference = AdapterOff(Lora()(policy))
        else:
            detail, _, dtype = kind.partition(" ")
            folder = tmp_path / str(len(prepared.rows))
            reference = cached(folder, tiny_policy(), prepared, detail, "bfloat16" if dtype else "float32")
        for batch in batches(prepared, batch_size=2):
            hidden = policy(batch.input_ids, batch.position_ids)
            given: Any = {"references": dict.fromkeys(("prior", "teacher"), reference.reference(batch))}
            design = load_design("kd" if kind == "topk" else "one_minus_prior")
            with torch.no_grad():
                out = linear_loss(hidden, policy.head, batch.labels, design, **given)
            if kind == "topk":  # the tail is shared out as the policy's own
                assert float(out.gap.max()) < 1e-6
            elif kind == "label":
                torch.testing.assert_close(out.reliance, 1 - (-out.nll).exp(), atol=1e-6, rtol=1e-5)
            else:
                assert float(out.kl_prior.abs().max()) < (1e-4 if "bf16" in kind else 1e-6)


def test_products_cast_beforehand_give_the_same_bits() -> None:
    """What autocast would do to a frozen model's linear layers at every use is done once."""
    (batch,) = batches(eight_rows(), batch_size=8)
    plain, cast = other_policy(), other_policy()
    cast_products(cast, torch.bfloat16)
    assert {tensor.dtype for tensor in cast.parameters()} == {torch.float32, torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        first, second = (FrozenModel(policy).exact(batch).rows for policy in (plain, cast))
    assert first is not None
    assert second is not None
    assert first.dtype == torch.float32
    assert torch.equal(first, second)


# Adapters


@pytest.mark.parametrize("design", few_at_once(DESIGNS))
def test_an_adapter_starts_where_full_fine_tuning_does(design: str) -> None:
    """With B = 0 nothing has changed yet; and ∂L/∂B = alpha/rank · ∂L/∂W · Aᵀ, the full gradient seen through A."""
    rows = batches(eight_rows(), batch_size=8)
    full, expected = one_step(module(design, **live(design)), rows)
    adapted = module(design, **live(design))
    Lora(rank=4, alpha=8.0)(adapted.policy)
    got, means = one_step(adapted, rows)
    close(means, expected, 1e-5)
    assert all("lora_" in name for name in got)
    frozen_a = dict(adapted.policy.named_parameters())
    for name, gradient in got.items():
        if "lora_B" in name:
            layer = name.replace("base_model.model.", "").replace(".lora_B.default", "")
            through = 2.0 * full[layer] @ frozen_a[name.replace("lora_B", "lora_A")].T
            torch.testing.assert_close(gradient, through, atol=1e-6, rtol=1e-3)
        else:
            assert not gradient.any()


@pytest.mark.parametrize("design", ["one_minus_prior", "asft", "sft_kl"])
def test_adapter_off_is_the_copy_it_saves(design: str) -> None:
    """After the adapter has moved, and with dropout on, the prior is what it was."""

    def moved(prior: Frozen | None) -> QTargetModule:
        trained = module(design, **({} if prior is None else {"prior": prior}))
        torch.manual_seed(0)
        Lora(rank=4, dropout=0.5)(trained.policy)
        if prior is None:
            trained.references["prior"] = AdapterOff(trained.policy)
        with torch.no_grad():
            for name, parameter in trained.policy.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.05)
        return trained

    rows = batches(eight_rows(), batch_size=8)
    found = []
    for trained in (moved(FrozenModel(tiny_policy())), moved(None)):
        torch.manual_seed(1)
        found.append(one_step(trained, rows))
        assert trained.policy.training
    close(found[1][0], found[0][0], 1e-5)
    close(found[1][1], found[0][1], 1e-5)
    assert found[0][1]["target/kl_prior"] > 1e-4


def test_a_merged_adapter_says_what_the_adapted_model_said() -> None:
    policy = Lora(rank=4)(tiny_policy())
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
        (batch,) = batches(eight_rows(), batch_size=8)
        expected, before = policy(batch.input_ids), tiny_policy()(batch.input_ids)
        merge(policy)
        assert not policy.has_adapter
        torch.testing.assert_close(policy(batch.input_ids), expected, atol=1e-5, rtol=1e-4)
        assert float((expected - before).abs().max()) > 1e-2


def test_a_reference_may_not_be_what_is_trained() -> None:
    policy = tiny_policy()
    shared = FrozenModel(Policy(policy.lm, policy.vocab_size))
    with pytest.raises(qtarget.QTargetError, match="the prior shares its weights with the policy"):
        QTargetModule(policy, load_design("asft"), {"prior": shared}, module().optim, total_steps=1)
    with pytest.raises(qtarget.QTargetError, match="this policy has none: add model/adapter=lora"):
        AdapterOff(tiny_policy())
