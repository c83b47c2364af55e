"""Mistakes that other trainers made, and the tests that would fail if they were made here."""

from __future__ import annotations

import ast
import gc
import json
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import published
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training import batches, close, eight_rows, live, one_step, tiny_policy
from worlds import NEEDS_TOP_K, TOP_K, World, few_at_once, load_design

import qtarget
from qtarget import Head, QTargetError, Reference
from qtarget.cli import run as qtarget_cli
from qtarget.config.composing import options
from qtarget.config.run_config import RunConfig
from qtarget.data.batch import Batch, Collate, WindowedLoader
from qtarget.data.module import DataConfig, prepare
from qtarget.data.sources.jsonl import Jsonl
from qtarget.evaluate.calibration import token_metrics
from qtarget.math import loss, scoring, tokens
from qtarget.math.loss import IGNORE
from qtarget.math.scoring import Scoring
from qtarget.math.target import columns, needs, wants_negatives
from qtarget.math.tokens import EarlierTokens
from qtarget.math.view import TokenView
from qtarget.model.builtin import tiny_tokenizer
from qtarget.model.policy import Policy
from qtarget.run import build
from qtarget.run.plan import make_plan
from qtarget.train.lightning_module import QTargetModule
from qtarget.train.optim import AdamW

MISTAKES: dict[int, tuple[str, ...]] = {
    1: (
        "label smoothing, or a loss of the user's own, crashes beside the default loss (TRL)",
        "test_mistakes::test_every_loss_gives_the_same_step",
        "test_mistakes::test_compiled_losses_give_the_same_step",
        "test_compiled::test_every_design_is_one_graph_that_says_the_same",
        "test_train::test_every_design_trains_and_evaluates",
        "test_parity::test_transformers_trainer_takes_the_same_step_at_any_accumulation",
        "test_parity::test_trls_dft_is_ours_and_trl_takes_a_design",
    ),
    2: (
        "four micro-batches instead of one make the gradient four times as large (LLaMA-Factory's ASFT)",
        "test_train::test_the_answer_does_not_depend_on_how_the_step_is_cut",
    ),
    3: (
        "a micro-batch without a supervised token has no graph (LLaMA-Factory's DFT)",
        "test_mistakes::test_a_micro_batch_without_a_supervised_token_adds_zeros",
        "test_laws::test_an_all_masked_batch_has_zero_gradient_and_says_so_once",
        "test_distributed::test_an_all_masked_micro_batch_on_one_rank",
    ),
    4: (
        "with the fused head another objective trains than the one asked for, without a word (LLaMA-Factory's ASFT)",
        "test_mistakes::test_a_training_step_is_that_of_the_published_objective",
        "test_mistakes::test_the_record_names_the_design_that_the_loss_was_given",
        "test_compiled::test_every_design_is_one_graph_that_says_the_same",
        "test_compiled::test_past_the_limit_of_graphs_it_fails_rather_than_going_on_eagerly",
        "test_engine::test_the_record_says_which_way_the_loss_ran",
    ),
    5: (
        "the square of the temperature multiplies the value and not the gradient (axolotl's top-k distillation)",
        "test_mistakes::test_finite_differences_of_the_value_are_the_gradient",
        "test_laws::test_gradient_is_that_of_the_published_objective",
    ),
    6: (
        "in bf16 the gradient is the worse the nearer the policy is to its teacher (Liger's chunked JSD)",
        "test_mistakes::test_bf16_products_are_all_that_bf16_rounds",
        "test_laws::test_bf16_near_the_prior_is_within_one_percent",
    ),
    7: (
        "the smaller vocabulary is padded with logits of 0, which get probability (Liger)",
        "test_mistakes::test_padding_of_either_model_holds_no_probability",
        "test_laws::test_padded_vocabulary_rows_never_matter",
        "test_loss::test_a_reference_with_more_padding_is_aligned",
        "test_cache::test_a_wider_padded_teacher_is_cut_to_the_true_vocabulary",
    ),
    8: (
        "a chunked divergence depends on the chunks, and is NaN where all is masked (torchtune)",
        "test_mistakes::test_chunks_of_any_size_give_one_loss",
        "test_laws::test_target_sums_to_its_mass_and_chunks_agree",
    ),
    9: (
        "a mean of means stands where the mean over tokens should (Transformers #34191, #46731, TRL #4719)",
        "test_distributed::test_two_ranks_take_the_steps_of_one",
        "test_train::test_each_way_of_dividing_divides_by_what_it_says",
        "test_train::test_token_means_weigh_tokens_not_batches",
        "test_parity::test_transformers_trainer_takes_the_same_step_at_any_accumulation",
    ),
    10: (
        "no gradient is synchronised between ranks, because the loss goes past DDP's forward (TRL #7245)",
        "test_distributed::test_gradients_are_the_same_on_every_rank_after_a_step",
    ),
    11: (
        "labels are shifted twice, metrics once (ms-swift #9973, TRL #5620)",
        "test_mistakes::test_loss_and_metrics_are_those_of_labels_shifted_once",
        "test_chat::test_labels_are_shifted_once_and_padding_is_ignored",
        "test_invariance::test_a_packed_row_as_it_was_written_down",
    ),
    12: (
        "the mask of a distillation, or its cache, is off by one token (DistillKit, axolotl)",
        "test_invariance::test_a_reference_that_is_the_policy_diverges_nowhere",
        "test_train::test_a_teacher_that_is_the_policy_has_no_divergence",
    ),
    13: (
        "the prior reads packed rows without position ids (LLaMA-Factory's ASFT)",
        "test_invariance::test_packed_rows_are_unpacked_rows",
    ),
    14: (
        "the reference is run in training mode (the official code of ASFT)",
        "test_train::test_a_prior_with_dropout_says_the_same_at_every_step",
        "test_invariance::test_adapter_off_is_the_copy_it_saves",
    ),
    15: (
        "with an adapter the reference is None (LLaMA-Factory)",
        "test_mistakes::test_a_run_with_an_adapter_has_every_reference_of_its_design",
        "test_invariance::test_an_adapter_starts_where_full_fine_tuning_does",
        "test_invariance::test_adapter_off_is_the_copy_it_saves",
    ),
    16: (
        "the teacher's target holds the student's logits with their graph (ms-swift)",
        "test_mistakes::test_no_gradient_goes_through_a_target",
        "test_laws::test_gradient_is_that_of_the_published_objective",
        "test_laws::test_linear_loss_agrees_and_nothing_but_the_total_has_a_graph",
        "test_laws::test_target_sums_to_its_mass_and_chunks_agree",
    ),
    17: (
        "evaluation under DFT crashes, or is off by a factor of a thousand (TRL #4096, axolotl #3271)",
        "test_mistakes::test_validation_has_the_scale_of_training",
        "test_parity::test_evaluation_inside_transformers_has_the_scale_of_training",
        "test_train::test_every_design_trains_and_evaluates",
    ),
    18: (
        "a KL over a top k is negative, and clamped (verl #7856)",
        "test_mistakes::test_divergences_are_not_negative",
        "test_mistakes::test_a_sum_that_is_no_divergence_is_not_clamped",
        "test_mistakes::test_a_top_k_of_the_whole_vocabulary_is_the_whole_teacher",
        "test_loss::test_a_top_k_of_everything_is_the_full_reference",
    ),
    19: (
        "logging the entropy takes tens of gigabytes (TRL #4013)",
        "test_mistakes::test_memory_is_that_of_chunks_however_many_tokens_there_are",
        "test_mistakes::test_a_chunk_of_many_blocks_takes_less",
        "test_mistakes::test_diagnostics_take_three_tensors_of_a_chunk_at_most",
    ),
    20: (
        "resuming silently starts the data or the tracked run again (Lightning #20550, verl #7401)",
        "test_resume::test_a_run_that_was_killed_ends_where_an_unbroken_one_does",
        "test_resume::test_the_data_go_on_where_the_steps_have_come",
        "test_resume::test_a_resumed_run_is_the_same_run_of_the_tracker",
        "test_resume::test_the_tracker_is_asked_to_go_on",
    ),
    21: (
        "packing or truncation drops the mask, and the stop token is not trained (TRL #3927, #3728)",
        "test_mistakes::test_truncated_and_packed_rows_keep_their_masks",
        "test_chat::test_the_answer_and_its_end_of_turn_are_supervised",
        "test_chat::test_every_assistant_turn_is_supervised",
        "test_invariance::test_a_packed_row_as_it_was_written_down",
    ),
    22: (
        "a loss that is ten times as small is taken for a bug (DFT #11, #32)",
        "test_mistakes::test_the_nll_of_the_same_tokens_is_logged_beside_every_loss",
        "test_train::test_every_design_trains_and_evaluates",
    ),
}
"""Row → what went wrong elsewhere (and where), and the tests that show that it holds here."""

DESIGNS = options("target")
every_design = pytest.mark.parametrize("name", DESIGNS)
few_designs_at_once = pytest.mark.parametrize("name", few_at_once(DESIGNS))
THRESHOLD = 0.004  # a random model gives no label a tenth
CHANGES = {name: {"reliance.threshold": THRESHOLD} for name in ("profit", "beyond_log_threshold")}
SYMBOLS = {"profit": {"tau": THRESHOLD}, "beyond_log_threshold": {"q": THRESHOLD}}


def defined_tests() -> set[str]:
    found = set()
    for path in Path(__file__).parents[1].rglob("test_*.py"):
        functions = (node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef))
        found |= {f"{path.stem}::{node.name}" for node in functions if node.name.startswith("test_")}
    return found


def test_the_table_names_tests_that_exist() -> None:
    """Every row, and every other test of this file."""
    assert list(MISTAKES) == list(range(1, 23))
    shown = {row: tests for row, (_, *tests) in MISTAKES.items()}
    named = {test for tests in shown.values() for test in tests}
    assert all(shown.values())
    assert named - defined_tests() == set()
    here = {test for test in defined_tests() if test.startswith("test_mistakes::")}
    assert here - named == {"test_mistakes::test_the_table_names_tests_that_exist"}


# One step of the tiny model on eight rows


@cache
def whole_batch() -> Batch:
    (batch,) = batches(eight_rows(), batch_size=8)
    return batch


@cache
def references(name: str) -> dict[str, Any]:
    return live(name, topk=TOP_K)


def trained(name: str) -> QTargetModule:
    """A module at the end of its design's schedules."""
    policy, design = tiny_policy().train(), load_design(name, **CHANGES.get(name, {}))
    made = QTargetModule(policy, design, references(name), AdamW(), total_steps=1)
    made.progress_at = lambda step: 1.0  # type: ignore[method-assign]
    return made


@cache
def plain_step(name: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    """What the step of eight rows in one micro-batch is."""
    return one_step(trained(name), [whole_batch()])


def logits_of(policy: Policy, batch: Batch) -> Tensor:
    """Transformers' own [B, T, V]."""
    logits: Tensor = policy.lm(input_ids=batch.input_ids, use_cache=False).logits
    return logits


def unshifted(batch: Batch) -> Tensor:
    """Labels [B, T] as transformers wants them: each beside its own token."""
    first = torch.full_like(batch.labels[:, :1], IGNORE)
    return torch.cat([first, batch.labels[:, :-1]], dim=1)


def divisor(name: str, out: Any) -> Any:
    """What the design's `normalize` divides a step of one micro-batch by."""
    kept = getattr(load_design(name), "normalize", "tokens") == "kept"
    return (out.mass > 0).sum() if kept else len(out.loss)


def gradients(policy: Policy, total: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*policy.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(total, parameters), strict=True))


# Row 1: every loss


def given(name: str, batch: Batch) -> dict[str, Any]:
    """What `trained` would put beside the labels."""
    return {
        "references": {role: frozen.reference(batch) for role, frozen in references(name).items()},
        "columns": batch.columns,
        "sequence_ids": batch.sequence_ids,
        "negatives": EarlierTokens.of(batch.input_ids),
        "progress": 1.0,
    }


def linear(policy: Policy, name: str, batch: Batch, **how: Any) -> Tensor:
    hidden, design = policy(batch.input_ids), load_design(name, **CHANGES.get(name, {}))
    out = qtarget.linear_loss(hidden, policy.head, batch.labels, design, **how, **given(name, batch))
    return out.total / divisor(name, out)


def dense(policy: Policy, name: str, batch: Batch, **how: Any) -> Tensor:
    design = load_design(name, **CHANGES.get(name, {}))
    out = qtarget.dense_loss(logits_of(policy, batch), batch.labels, design, **how, **given(name, batch))
    return out.total / divisor(name, out)


def inside_trainers(policy: Policy, name: str, batch: Batch) -> Tensor:
    made = qtarget.hf_loss(load_design(name, **CHANGES.get(name, {})), progress=lambda: 1.0)
    return made({"logits": logits_of(policy, batch)}, unshifted(batch), batch.supervised)


def fits_trainers(name: str) -> bool:
    design = load_design(name)
    return not (needs(design) or columns(design) or wants_negatives(design))


@few_designs_at_once
def test_every_loss_gives_the_same_step(name: str) -> None:
    """In other trainers a target works beside one loss and crashes beside the default one (TRL)."""
    policy, batch = tiny_policy(), whole_batch()
    expected, _ = plain_step(name)
    assert any(gradient.any() for gradient in expected.values())
    close(gradients(policy, linear(policy, name, batch)), expected, 1e-5)
    close(gradients(policy, dense(policy, name, batch)), expected, 1e-4)
    if fits_trainers(name):
        close(gradients(policy, inside_trainers(policy, name, batch)), expected, 1e-4)
    else:
        with pytest.raises(QTargetError, match="looks at"):
            inside_trainers(policy, name, batch)


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Dynamo and AOT autograd without generated code."""
    monkeypatch.setattr(scoring, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    scoring._compiled.cache_clear()
    yield
    torch._dynamo.reset()
    scoring._compiled.cache_clear()


@pytest.mark.slow
@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize("name", ["label_smoothing", "iw_sft", "asft", "gem", "kd_jsd", "kd_support"])
def test_compiled_losses_give_the_same_step(name: str) -> None:
    """The same for one of each kind; that the compiled loss is the eager one for all of them is in test_compiled."""
    policy, batch = tiny_policy(), whole_batch()
    expected, _ = plain_step(name)
    for path in (linear, dense):
        close(gradients(policy, path(policy, name, batch, compiled=True)), expected, 1e-4)


# Row 3: nothing supervised


@few_designs_at_once
def test_a_micro_batch_without_a_supervised_token_adds_zeros(name: str) -> None:
    """In other trainers its loss has no graph, and the run ends there (LLaMA-Factory's DFT)."""
    batch = whole_batch()
    empty = replace(
        batch, labels=torch.full_like(batch.labels, IGNORE), label_indices=torch.full_like(batch.label_indices, -1)
    )
    expected, means = plain_step(name)
    with pytest.warns(UserWarning, match="no supervised token in this batch"):
        got, got_means = one_step(trained(name), list(WindowedLoader([empty, batch], accumulate=2)))
    close(got, expected, 1e-5)
    assert got_means == pytest.approx(means)
    alone = trained(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zeros, _ = one_step(alone, list(WindowedLoader([empty])))
    assert zeros.keys() == dict(alone.policy.named_parameters()).keys()  # DDP waits for every one of them
    assert not any(gradient.any() for gradient in zeros.values())


# Row 4: no silent fallback


def as_world(name: str, policy: Policy, batch: Batch) -> World:
    """The supervised tokens of a batch as the papers' formulas take them, put together without the loss's own code."""
    at = batch.labels != IGNORE
    theirs = {role: logits_of(frozen.policy, batch)[at].log_softmax(-1) for role, frozen in references(name).items()}
    rows, places = at.nonzero(as_tuple=True)
    earlier = [batch.input_ids[row, : place + 1] for row, place in zip(rows, places, strict=True)]
    return World(
        logits=logits_of(policy, batch)[at],
        labels=batch.labels[at],
        critical=batch.columns["critical"][at],
        negatives=torch.nn.utils.rnn.pad_sequence(earlier, batch_first=True, padding_value=IGNORE),
        sequence_ids=rows,
        **theirs,
    )


@every_design
def test_a_training_step_is_that_of_the_published_objective(name: str) -> None:
    """Other trainers fall back to plain cross-entropy without a word (LLaMA-Factory's ASFT with a fused head)."""
    policy, batch = tiny_policy(), whole_batch()
    world = as_world(name, policy, batch)
    objective = getattr(published, name)(world.logits.log_softmax(-1), world, **SYMBOLS.get(name, {}))
    got, means = plain_step(name)
    with torch.no_grad():
        kept = divisor(name, trained(name).token_loss(batch))
    close(got, gradients(policy, objective.sum() / kept), 1e-4)
    assert means["train/loss"] > 0 or name in SYMBOLS


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*")  # Lightning 2.6 on torch 2.13's pytrees
@pytest.mark.parametrize("name", ["asft", "dft", "gem", "confidence_penalty"])
def test_the_record_names_the_design_that_the_loss_was_given(
    name: str, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In other trainers nothing tells that the objective asked for is not the one that ran (LLaMA-Factory's ASFT)."""
    ran: set[tuple[str, str]] = set()
    original = loss.chunk_loss

    def watched(scoring: Scoring, *, compiled: bool = False) -> Any:
        if scoring.wants_gradient:  # held-out nll is measured the same way for every design
            ran.add((repr(scoring.design), "compiled" if compiled else "eager"))
        return original(scoring, compiled=compiled)

    monkeypatch.setattr(loss, "chunk_loss", watched)
    few = ["model=tiny", "trainer.max_steps=1", "trainer.eval_every=0", "data.rows=16", "data.heldout_rows=0"]
    assert qtarget_cli(["train", f"target={name}", *few, "checkpoint.save=false"]) == 0
    (path,) = workdir.glob("outputs/runs/*/result.json")
    result = json.loads(path.read_text())
    assert ran == {(result["design"]["repr"], result["loss"].split(":")[0])}


# Row 5: value and gradient


@dataclass(frozen=True)
class Fixed:
    """A part that says what another one said, whatever the policy has become since."""

    values: Any

    def __call__(self, view: TokenView) -> Any:
        return self.values


def with_its_target_fixed(design: Any, view: TokenView) -> Any:
    """The design with γ, π̃ and w as constants: what is left to differentiate is the loss that trains."""
    parts = [part for part in ("reliance", "residual", "weight") if hasattr(design, part)]
    return replace(design, **{part: Fixed(getattr(design, part)(view)) for part in parts})


TEMPERED = [("kd_temperature", {"objective.temperature": value}) for value in (0.5, 4.0)] + [
    ("kd_temperature", {"objective.temperature": 4.0, "objective.squared": False})
]


@pytest.mark.parametrize(("name", "changes"), [(name, {}) for name in DESIGNS] + TEMPERED, ids=str)
def test_finite_differences_of_the_value_are_the_gradient(
    name: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In other trainers a factor reaches the value and not the gradient (axolotl's top-k distillation at T ≠ 1)."""
    world, design, seen = World.random(2), load_design(name, **changes), []
    original = type(design).__call__
    monkeypatch.setattr(type(design), "__call__", lambda self, view: (seen.append(view), original(self, view))[1])
    logits = world.leaf()
    out = qtarget.dense_loss(logits, world.labels, design, **world.given(name))
    out.total.backward()
    fixed = with_its_target_fixed(design, seen[0])

    def value(column: int, step: float) -> Tensor:
        moved = world.logits.clone()
        moved[:, column] += step
        return qtarget.dense_loss(moved, world.labels, fixed, **world.given(name)).loss

    torch.testing.assert_close(value(0, 0.0), out.loss)
    slopes = [(value(column, 1e-5) - value(column, -1e-5)) / 2e-5 for column in range(11)]
    torch.testing.assert_close(torch.stack(slopes, dim=1), logits.grad, atol=1e-8, rtol=1e-6)


# Row 6: bf16 near the prior


@every_design
@pytest.mark.parametrize("distance", [0.05, 0.005])
def test_bf16_products_are_all_that_bf16_rounds(name: str, distance: float) -> None:
    """In other trainers the gradient is off by a quarter where policy and teacher are near (Liger's chunked JSD).

    Expected: fp64 throughout, from the logits that the bf16 products gave.
    """
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(32, 24, generator=generator), torch.randn(300, 24, generator=generator)
    theirs = hidden + distance * torch.randn(32, 24, generator=generator)
    hidden, weight, theirs = (tensor.bfloat16().float() for tensor in (hidden, weight, theirs))
    logits, near = ((side.bfloat16() @ weight.bfloat16().T).double() for side in (hidden, theirs))
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
    near = near.log_softmax(-1)
    blank = World.random(0, count=32, vocab=300)
    exact = blank.changed(logits=logits, labels=labels, prior=near, teacher=near, old=near)
    leaf = exact.leaf()
    qtarget.dense_loss(leaf, labels, load_design(name), **exact.given(name)).total.backward()
    assert leaf.grad is not None
    near_ones = Reference.hidden(theirs, Head(weight))
    teacher = near_ones.truncated(TOP_K) if name in NEEDS_TOP_K else near_ones
    beside = exact.given(name) | {"references": {"prior": near_ones, "teacher": teacher, "old": near_ones}}
    hidden.requires_grad_()
    weight.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = qtarget.linear_loss(hidden, weight, labels, load_design(name), chunk_size=9, **beside)
    out.total.backward()
    for got, expected in ((hidden.grad, leaf.grad @ weight.double()), (weight.grad, leaf.grad.T @ hidden.double())):
        assert got is not None
        assert (got - expected).norm() < 0.01 * expected.norm()


# Row 7: padded vocabularies


def padded(policy: Policy, rows: int) -> Policy:
    """With more rows in its head than there are tokens, all of them likely."""
    policy.lm.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        policy.lm.get_output_embeddings().weight[policy.vocab_size :] = 1.0
        policy.lm.get_input_embeddings().weight[policy.vocab_size :] = 1.0
    return policy


@pytest.mark.parametrize("name", ["label_smoothing", "kd", "kd_reverse", "kd_jsd", "target_sft", "gem", "sft_kl"])
@pytest.mark.parametrize("rows", [(300, None), (None, 300), (280, 300), (300, 280)])
def test_padding_of_either_model_holds_no_probability(name: str, rows: tuple[int | None, int | None]) -> None:
    """Other trainers fill the smaller vocabulary up with logits of 0, which get probability (Liger)."""
    batch = whole_batch()
    expected, means = plain_step(name)
    made, roles = trained(name), live(name)
    if rows[0]:
        padded(made.policy, rows[0])
    if rows[1]:
        padded(roles["prior"].policy, rows[1])  # type: ignore[attr-defined]  # which plays every role
    made.references = roles
    got, got_means = one_step(made, [batch])
    vocab = made.policy.vocab_size
    cut = {key: value[:vocab] if "embed" in key or "lm_head" in key else value for key, value in got.items()}
    close(cut, expected, 1e-5)
    close(got_means, means, 1e-5)
    assert not any(value[vocab:].any() for key, value in got.items() if "embed" in key or "lm_head" in key)


# Row 8: chunks


@every_design
@pytest.mark.parametrize("masked", ["some", "a chunk", "all"])
@pytest.mark.filterwarnings("ignore:no supervised token")
def test_chunks_of_any_size_give_one_loss(name: str, masked: str) -> None:
    """In other trainers it depends on the chunks, and is NaN where all is masked (torchtune)."""
    world, design = World.random(8, count=9), load_design(name)
    off = {"some": [0, 4, 5], "a chunk": [0, 1, 2, 3, 4], "all": list(range(9))}[masked]
    labels = world.labels.index_fill(0, torch.tensor(off), IGNORE)
    eye = torch.eye(11, dtype=torch.float64)
    found = []
    for size in (None, 1, 5, 9 - len(off) or 1, 9, 10):
        hidden, weight = world.leaf(), eye.clone().requires_grad_()
        out = qtarget.linear_loss(hidden, weight, labels, design, chunk_size=size, **world.given(name))
        out.total.backward()
        found.append((out.total.detach(), out.loss, hidden.grad, weight.grad))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])
    assert len(found[0][1]) == 9 - len(off)
    assert torch.isfinite(found[0][0])


# Row 11: one shift


def test_loss_and_metrics_are_those_of_labels_shifted_once() -> None:
    """Other trainers shift twice in the loss and once in the metrics, or the other way (ms-swift #9973, TRL #5620).

    Expected: what transformers makes of labels that it shifts itself.
    """
    prepared, policy = eight_rows(), tiny_policy()
    by_row = {tuple(example.input_ids): example for example in prepared.train}
    total, count = 0.0, 0
    for ids, example in by_row.items():
        labels = [token if on else IGNORE for token, on in zip(ids, example.supervised, strict=True)]
        given = {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels])}
        total += float(policy.lm(**given, use_cache=False).loss.detach()) * example.labels
        count += example.labels
    expected = pytest.approx(total / count, rel=1e-5)
    for rows in (prepared, eight_rows(packing=240)):
        made, (batch,) = trained("sft"), batches(rows, batch_size=8)
        assert batch.supervised == count
        assert float(made.training_step(batch, 0).detach()) == expected
        means = made.recent.pop()
        assert means["train/nll"] == means["train/loss"] == expected
        assert token_metrics(policy, None, [batch])["nll"] == expected


# Row 15: adapters

OTHERS = ["reference@references.teacher=frozen", "references.teacher.name=tiny", "reference@references.old=snapshot"]
SMALL = ["model=tiny", "trainer.batch_size=4", "data.rows=4", "data.heldout_rows=0", "eval.kl_prior=false"]


@pytest.mark.parametrize("name", ["asft", "one_minus_prior", "kd", "kd_support", "psft"])
def test_a_run_with_an_adapter_has_every_reference_of_its_design(name: str) -> None:
    """In other trainers the reference is None as soon as there is an adapter (LLaMA-Factory).

    From the configuration on, for each role; the steps of every design with an adapter are in test_invariance.
    """

    def first_step(*options: str) -> dict[str, float]:
        topk = [f"references.teacher.topk={TOP_K}"] if name in NEEDS_TOP_K else []
        exact = ["model/adapter=lora", "trainer.precision=32-true"]
        overrides = [f"target={name}", *exact, *OTHERS, *SMALL, *topk, *options]
        plan = make_plan(RunConfig.compose(overrides))
        made = build.module(plan, *build.load_models(plan))
        assert made.references.keys() == needs(plan.design).keys()
        gradient, means = one_step(made, list(build.data(plan).train_dataloader()))
        assert all("lora_" in key for key in gradient)
        return means

    copied = first_step()
    if "prior" in needs(load_design(name)):
        close(first_step("reference@references.prior=adapter_off"), copied, 1e-5)


# Row 16: targets have no graph


@every_design
@pytest.mark.parametrize("kind", ["full", "hidden", "scalars"])
def test_no_gradient_goes_through_a_target(name: str, kind: str) -> None:
    """In other trainers the student's logits reach the teacher's target with their graph (ms-swift)."""
    world, design, weight = World.random(16), load_design(name), torch.eye(11, dtype=torch.float64, requires_grad=True)

    def reference(logp: Tensor, detail: str) -> Reference:
        if kind == "scalars" and detail == "label":
            p = logp.exp()
            outranked = torch.where(logp < logp.gather(1, world.labels[:, None]), p, 0.0).sum(-1)
            found = {"logp": logp.gather(1, world.labels[:, None]).squeeze(1), "outranked": outranked}
            return Reference.label(world.labels, found)
        whole = Reference.hidden(logp, Head(weight)) if kind == "hidden" else Reference.full(logp)
        return whole.truncated(TOP_K) if name in NEEDS_TOP_K else whole

    def step(graph: bool) -> list[Tensor | None]:
        logits = world.leaf()
        mixed = {role: 0.5 * getattr(world, role) + 0.5 * (logits if graph else world.logits) for role in needs(design)}
        roles = {role: reference(z.log_softmax(-1), needs(design)[role]) for role, z in mixed.items()}
        out = qtarget.dense_loss(logits, world.labels, design, **world.given(name) | {"references": roles})
        return list(torch.autograd.grad(out.total, [logits, weight], allow_unused=True))

    (leaked, through_head), (expected, _) = step(graph=True), step(graph=False)
    torch.testing.assert_close(leaked, expected)
    assert through_head is None


# Row 17: evaluation


@few_designs_at_once
def test_validation_has_the_scale_of_training(name: str) -> None:
    """In other trainers evaluation crashes, or is off by a thousand, under DFT (TRL #4096, axolotl #3271)."""
    made, batch = trained(name), whole_batch()
    held_out = token_metrics(made.policy, made.references["prior"], [batch])
    with torch.no_grad():
        out = made.token_loss(batch)
    total = float(made.training_step(batch, 0).detach())
    means = made.recent.pop()
    assert total == pytest.approx(float(out.loss.sum() / divisor(name, out)), rel=1e-5, abs=1e-7)
    assert means["train/loss"] == pytest.approx(float(out.loss.mean()), rel=1e-5, abs=1e-7)
    for metric, expected in (("nll", means["train/nll"]), ("kl_prior", means["target/kl_prior"])):
        assert held_out[metric] == pytest.approx(expected, rel=1e-5)


# Row 18: divergences

DIVERGENCES: list[tuple[str, dict[str, Any]]] = [
    ("kd_reverse", {}),
    ("kd_support", {}),
    *(("kd_jsd", {"objective.beta": beta}) for beta in (0.0, 0.1, 0.5, 0.9, 1.0)),
    *(("kd_temperature", {"objective.temperature": value}) for value in (0.5, 1.0, 4.0)),
]


@pytest.mark.parametrize(("name", "changes"), DIVERGENCES, ids=str)
@pytest.mark.parametrize("distance", [1.0, 1e-3])
def test_divergences_are_not_negative(name: str, changes: dict[str, Any], distance: float) -> None:
    """In other trainers a KL over a top k is negative, and clamped in most steps (verl #7856)."""
    world = World.random(18, count=50)
    near = (world.logits + distance * world.teacher).log_softmax(-1)
    world = world.changed(teacher=near, prior=near)
    out = qtarget.dense_loss(world.logits, world.labels, load_design(name, **changes), **world.given(name))
    assert (out.loss > 0).all()
    assert (out.kl_prior > 0).all()
    assert not (out.kl_to_target < 0).any()


def test_a_sum_that_is_no_divergence_is_not_clamped() -> None:
    """In other trainers a KL over a top k is negative, and clamped in most steps (verl #7856)."""
    world = World.random(18, count=50)
    world = world.changed(teacher=(0.5 * world.logits).log_softmax(-1))  # flatter: its top k holds less than p's
    given, expected = world.given("kd_truncated"), published.kd_truncated(world.logits.log_softmax(-1), world, k=TOP_K)
    out = qtarget.dense_loss(world.logits, world.labels, load_design("kd_truncated"), **given)
    assert (expected < 0).any()
    torch.testing.assert_close(out.loss, expected)


@pytest.mark.parametrize("name", [name for name in DESIGNS if set(needs(load_design(name)).values()) - {"label"}])
def test_a_top_k_of_the_whole_vocabulary_is_the_whole_teacher(name: str) -> None:
    """In other trainers what is done about the tail changes a sum that has no tail (verl #7856)."""
    world = World.random(19)

    def step(design: str, roles: dict[str, Reference]) -> tuple[Any, Tensor]:
        logits = world.leaf()
        out = qtarget.dense_loss(logits, world.labels, load_design(design), **world.given() | {"references": roles})
        return out.loss, torch.autograd.grad(out.total, logits)[0]

    stored = {role: held.truncated(11) for role, held in world.references.items()}
    value, gradient = step(name, stored)
    expected, expected_gradient = step("kd" if name in NEEDS_TOP_K else name, world.references)
    if name in NEEDS_TOP_K:  # a KL divergence, where kd's own value is the cross-entropy
        expected = expected + (world.teacher.exp() * world.teacher).sum(-1)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)


# Row 19: memory


class Allocated(TorchDispatchMode):
    """Bytes of the tensors that operations made, while they live; Python's collector of cycles stands still."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._alive: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if torch.is_tensor(tensor)}
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if torch.is_tensor(tensor) and tensor.untyped_storage()._cdata not in before:
                self._count(tensor.untyped_storage())
        return found

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self.live += size
            self.peak = max(self.peak, self.live)
            self._alive[key] = weakref.ref(storage, lambda _: self._forget(key, size))

    def _forget(self, key: int, size: int) -> None:
        self.live -= size
        del self._alive[key]

    def __enter__(self) -> Allocated:
        gc.disable()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        gc.enable()


CHUNK, WIDTH, VOCAB = 16, 8, 2000


def chunks_allocated(name: str, count: int, *roles: str) -> float:
    """The most memory that linear_loss and its backward take at once, in chunks × vocabulary × 4 bytes."""
    generator = torch.Generator().manual_seed(0)
    hidden, theirs = (torch.randn(count, WIDTH, generator=generator) for _ in range(2))
    weight, labels = torch.randn(VOCAB, WIDTH, generator=generator), torch.randint(VOCAB, (count,), generator=generator)
    one = Reference.hidden(theirs, Head(weight))
    held = one.truncated(TOP_K) if name in NEEDS_TOP_K else one
    beside = {
        "references": {role: held if role == "teacher" else one for role in (*needs(load_design(name)), *roles)},
        "sequence_ids": torch.arange(count) // 4,
        "columns": {"critical": torch.ones(count)},
        "negatives": labels[:, None],
        "progress": 1.0,
    }
    hidden.requires_grad_()
    qtarget.linear_loss(hidden[:1], weight, labels[:1], load_design("sft"))  # what a process allocates once
    with Allocated() as allocated:
        qtarget.linear_loss(hidden, weight, labels, load_design(name), chunk_size=CHUNK, **beside).total.backward()
    return allocated.peak / (CHUNK * VOCAB * 4)


@every_design
def test_memory_is_that_of_chunks_however_many_tokens_there_are(name: str) -> None:
    """In other trainers a logged entropy alone took 80 GB (TRL #4013)."""
    few, many = (chunks_allocated(name, count, "prior") for count in (2 * CHUNK, 8 * CHUNK))
    assert few < 18
    assert many - few < 0.5  # what is kept of a token takes hundreds of bytes, and not V numbers


def test_a_chunk_of_many_blocks_takes_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a design makes of a chunk is made block by block; the chunk's products alone are held as a whole."""
    whole = chunks_allocated("target_sft", 4 * CHUNK, "prior")
    monkeypatch.setattr(tokens, "BLOCK_BYTES", 4 * VOCAB)
    assert chunks_allocated("target_sft", 4 * CHUNK, "prior") < whole / 2


@pytest.mark.parametrize("name", ["sft", "dft", "eaft", "label_smoothing", "target_sft", "kd_jsd", "gem"])
def test_diagnostics_take_three_tensors_of_a_chunk_at_most(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In other trainers a logged entropy alone took 80 GB (TRL #4013). One of the three is the gradient, which without
    them is written over the logits. Drift from a prior takes its products and the prior as well.
    """

    def objective_alone(how: Scoring, logits: Tensor, tokens: Any) -> Any:
        view = tokens.view(torch.log_softmax(logits, dim=-1), has_zeros=how.has_zeros)
        target, none = how.design(view), torch.zeros(len(logits))
        known = {"loss": target.value(view), "nll": -view.label_logp, "reliance": target.label_mass}
        known |= {"weight": target.weight, "mass": target.mass}
        assert known.keys() <= {measure.name for measure in how.measures}
        target.gradient(view, tokens.scale, logits)
        return tuple(known.get(measure.name, none) for measure in how.measures), None

    everything, with_drift = chunks_allocated(name, 4 * CHUNK), chunks_allocated(name, 4 * CHUNK, "prior")
    monkeypatch.setattr(scoring, "evaluate", objective_alone)
    alone = chunks_allocated(name, 4 * CHUNK)
    assert alone > 3
    assert everything - alone < 3.1
    assert with_drift - everything < 3.1


# Row 21: masks


def test_truncated_and_packed_rows_keep_their_masks(tmp_path: Path) -> None:
    """In other trainers either drops the mask, and the end of a turn is not learnt (TRL #3927, #3728)."""
    answers = ["1", "22", "333", "4444", "5" * 90]
    lines = [json.dumps({"prompt": f"say {index}", "completion": answer}) for index, answer in enumerate(answers)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    config = DataConfig(Jsonl(str(tmp_path / "rows.jsonl"), heldout_share=0.0), rows=None, heldout_rows=0)
    lengths = {example.row: len(example) for example in prepare(config, tiny_tokenizer(), 1024).train}
    limit = max(lengths.values()) - 40
    cut = replace(config, max_length=limit, truncation="cut", packing=limit)
    packs = prepare(cut, tiny_tokenizer(), 1024).rows
    assert len(packs) < len(answers)
    found = {}
    for pack in packs:
        assert isinstance(pack, tuple)
        batch = Collate(256)([pack])
        for number, example in enumerate(pack):
            mine = batch.labels[(batch.sequence_ids == number) & (batch.labels != IGNORE)]
            found[example.row] = tiny_tokenizer().decode(mine)
    whole = {row: [*answer, "<|end|>"] for row, answer in zip(sorted(lengths), answers, strict=True)}  # by token
    assert found == {row: "".join(text[: len(text) - max(0, lengths[row] - limit)]) for row, text in whole.items()}


# Row 22: nll beside the loss


@every_design
def test_the_nll_of_the_same_tokens_is_logged_beside_every_loss(name: str) -> None:
    """Users of other trainers take a loss that is ten times as small for a bug (DFT #11, #32)."""
    (_, plain), (_, means) = plain_step("sft"), plain_step(name)
    assert means["train/nll"] == pytest.approx(plain["train/nll"], rel=1e-6)
    assert plain["train/loss"] == plain["train/nll"]
    assert "train/loss" in means
