"""A batch that is refilled while it is written: whose answers they are, and how much is read for them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_architectures import TOKENS, small_config, small_model
from training import other_policy
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from qtarget.evaluate import refill, row_cache
from qtarget.evaluate.generate import generate, way_of_writing
from qtarget.evaluate.refill import why_not_refilled
from qtarget.evaluate.sampling import GREEDY, Sampling
from qtarget.model.policy import Policy

PROMPTS = [[9 + (7 * length + place) % 80 for place in range(length)] for length in (5, 22, 40, 31, 18, 3, 22)]
DRAWN = Sampling(3, 1.0, 0.95, seed=1)
ENDS = [98, *range(10, 14)]
"""Several, so that random models end some answers early and others not."""


def answers(policy: Policy, sampling: Sampling = DRAWN, **options: Any) -> list[list[Any]]:
    given = {"ends": ENDS, "pad": 0, "new_tokens": 12, "batch": 5} | options
    return generate(policy, PROMPTS, sampling=sampling, **given)


def small_policy(model_type: str) -> Policy:
    """With weights large enough that contexts matter."""
    lm = small_model(small_config(model_type))
    with torch.no_grad():
        for weight in lm.parameters():
            weight.mul_(2.5 if weight.ndim > 1 else 1.0)
    return Policy(lm, TOKENS).eval()


@pytest.fixture
def cramped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers without spare columns: the window moves and the buffers grow again and again."""
    monkeypatch.setattr(row_cache, "SPARE", 1)


@pytest.mark.usefixtures("cramped")
@pytest.mark.parametrize("batch", [1, 2, 5, 64])
@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_answers_are_those_of_whole_batches(batch: int, sampling: Sampling) -> None:
    policy = small_policy("llama")
    free = answers(policy, sampling, refilled=False, batch=64, ends=[999])
    ends = [free[row][0].ids[place] for row, place in ((0, 3), (1, 6), (2, 9))]  # tokens that answers really write
    expected = answers(policy, sampling, refilled=False, batch=64, ends=ends)
    assert answers(policy, sampling, refilled=True, batch=batch, ends=ends) == expected
    assert {one.ended for row in expected for one in row} == {True, False}
    assert len({len(one.ids) for row in expected for one in row}) > 3  # rows leave at different times


def test_greedy_answers_are_those_of_transformers_generate_alone() -> None:
    policy = small_policy("qwen3")
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": ENDS, "pad_token_id": 0}
    for prompt, (answer,) in zip(PROMPTS, answers(policy, GREEDY), strict=True):
        ids = torch.tensor([prompt])
        written = policy.lm.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
        plain = written[0, len(prompt) :].tolist()
        assert answer.ids == (plain[:-1] if answer.ended else plain)


class Counted:
    """Rows and columns of each forward."""

    def __init__(self, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, int]] = []
        forward = policy.next_scores

        def counted(**inputs: Any) -> Any:
            self.shapes.append(tuple(inputs["input_ids"].shape))
            return forward(**inputs)

        monkeypatch.setattr(policy, "next_scores", counted)

    @property
    def prompts_read(self) -> int:
        return sum(rows for rows, columns in self.shapes if columns > 1)

    @property
    def row_steps(self) -> int:
        return sum(rows for rows, columns in self.shapes if columns == 1)


@pytest.mark.parametrize("batch", [4, 6])
def test_samples_share_a_prefill_and_rows_that_have_ended_are_not_computed(
    batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first token of an answer comes from the prefill, the token that ends it or the limit from the last step."""
    policy = small_policy("llama")
    counted = Counted(policy, monkeypatch)
    written = [one for row in answers(policy, batch=batch) for one in row]
    assert counted.prompts_read == len(PROMPTS)  # not × 3 samples
    assert counted.row_steps == sum(len(one.ids) - 1 + one.ended for one in written)
    assert max(rows for rows, columns in counted.shapes if columns == 1) == batch


def test_progress_is_counted_by_answers() -> None:
    seen: list[Any] = []

    def watch(requests: list[Any]) -> Iterator[Any]:
        seen.append(len(requests))
        for number, request in enumerate(requests):
            yield request
            seen[0] = len(requests) - number - 1

    answers(small_policy("llama"), watch=watch)
    assert seen == [0]


def test_keys_and_values_of_a_mixed_precision_pass_keep_their_own_dtypes() -> None:
    policy = other_policy().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        written = answers(policy)
    assert sum(len(one.ids) for row in written for one in row) > 20


@pytest.mark.usefixtures("cramped")
@pytest.mark.parametrize("model_type", ["mistral", "gemma3_text", "gpt_oss"])
def test_a_sliding_window_is_one_of_each_rows_own_tokens(model_type: str) -> None:
    """In small_config a window has 16 tokens, fewer than prompts and answers."""
    policy = small_policy(model_type)
    assert policy.lm.config.sliding_window == 16
    assert why_not_refilled(policy) is None
    assert answers(policy, refilled=True) == answers(policy, refilled=False, batch=64)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("mamba", "MambaForCausalLM takes no position_ids or past_key_values"),
        ("falcon_h1", "the cache of FalconH1ForCausalLM has layers of kind LinearAttentionAndFullAttentionLayer"),
        ("bloom", "BloomForCausalLM takes no position_ids"),
        ("llama4_text", "Llama4ForCausalLM attends by attention_chunk_size"),
    ],
)
def test_models_whose_rows_cannot_move_are_named_and_answer_in_whole_batches(
    model_type: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = small_policy(model_type)
    assert why_not_refilled(policy) == reason
    assert way_of_writing(policy) == f"in whole batches, each until its longest answer has ended: {reason}"
    monkeypatch.setattr(refill.Refill, "answers", lambda self: pytest.fail("refilled"))
    assert len(answers(policy)) == len(PROMPTS)


@pytest.mark.slow
def test_every_architecture_answers_as_in_whole_batches_or_is_named() -> None:
    result: Counter[str] = Counter()
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result[_compared(model_type)] += 1
    assert result["same"] > 110
    assert result["named"] > 30
    assert not result["other"]


def _compared(model_type: str) -> str:
    try:
        policy = Policy(small_model(small_config(model_type)), TOKENS).eval()
        reason = why_not_refilled(policy)
    except Exception:
        return "not small"
    if reason:
        return "named"
    given = {"sampling": DRAWN, "ends": ENDS, "pad": 0, "new_tokens": 8}
    refilled, whole = (
        generate(policy, PROMPTS[:3], batch=batch, refilled=way, **given) for batch, way in ((4, True), (9, False))
    )
    return "same" if refilled == whole else "other"
