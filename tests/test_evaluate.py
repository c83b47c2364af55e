"""Generation, verdicts and intervals."""

from __future__ import annotations

import pytest
import torch

from qtarget.evaluate.generate import greedy
from qtarget.evaluate.scores import accuracy
from qtarget.model.policy import Policy
from qtarget.model.tiny import tiny_config, tiny_model, tiny_tokenizer

VOCAB = len(tiny_tokenizer())
PROMPTS = [[5, 6, 7], [9], [1, 2, 3, 4, 5, 6, 7, 8], [30, 31]]


def by_hand(lm: torch.nn.Module, prompt: list[int], ends: list[int], count: int) -> list[int]:
    """One token at a time, no cache, no padding."""
    written: list[int] = []
    while len(written) < count:
        logits = lm(input_ids=torch.tensor([[*prompt, *written]]), use_cache=False).logits[0, -1]
        token = int(logits.argmax())
        if token in ends:
            break
        written.append(token)
    return written


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_greedy_takes_the_likeliest_token_whatever_the_batch(batch: int) -> None:
    lm = tiny_model(tiny_config(len(tiny_tokenizer()))).eval()
    with torch.no_grad():
        free = [by_hand(lm, prompt, [], 6) for prompt in PROMPTS]
        end = free[2][3]  # a token that some answer really writes, as the end
        expected = [by_hand(lm, prompt, [end, 999], 6) for prompt in PROMPTS]
    assert greedy(Policy(lm, VOCAB), PROMPTS, ends=[end, 999], pad=256, new_tokens=6, batch=batch) == expected
    assert any(len(answer) < 6 for answer in expected)


def test_a_checkpoints_own_generation_settings_stand_aside() -> None:
    lm = tiny_model(tiny_config(len(tiny_tokenizer()))).eval()
    expected = greedy(Policy(lm, VOCAB), PROMPTS, ends=[256], pad=256, new_tokens=6, batch=4)
    lm.generation_config.repetition_penalty = 50.0
    lm.generation_config.suppress_tokens = [token for answer in expected for token in answer]
    assert greedy(Policy(lm, VOCAB), PROMPTS, ends=[256], pad=256, new_tokens=6, batch=4) == expected
    assert lm.generation_config.repetition_penalty == 50.0


def test_the_interval_is_wilsons() -> None:
    """Against the closed form: centre (p + z²/2n)/(1 + z²/n), half width z·√(p(1−p)/n + z²/4n²)/(1 + z²/n)."""
    score = accuracy([True] * 12 + [False] * 28)
    z, n, p = 1.959963984540054, 40, 0.3
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5 / (1 + z**2 / n)
    assert score.mean == 0.3
    assert (score.low, score.high) == pytest.approx((centre - half, centre + half))
    assert accuracy([False] * 10).low == 0.0
    assert accuracy([False] * 10).high > 0.2
