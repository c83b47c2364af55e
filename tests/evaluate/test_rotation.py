"""Answers of models that rotate long texts otherwise: each is the one that transformers gives its prompt alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tiny_architectures import TOKENS, small_config, small_model
from torch.distributed.device_mesh import init_device_mesh
from transformers import PreTrainedConfig

from qtarget.evaluate import refill
from qtarget.evaluate.generate import generate, way_of_writing
from qtarget.evaluate.requests import Prompts
from qtarget.evaluate.rotation import length_rule
from qtarget.evaluate.sampling import GREEDY, Sampling
from qtarget.model.policy import Policy
from qtarget.model.sharding import shard
from qtarget.run import ranks

STEADY, NEW = 24, 12
PROMPTS = [[9 + (7 * length + place) % 80 for place in range(length)] for length in (5, 22, 40, 31, 18, 3, 22, 20, 12)]
"""Some stay short, some are long from the start, and some become so while they are answered."""
DRAWN = Sampling(3, 1.0, 0.95, seed=1)


def longrope(theta: float = 10000.0) -> dict[str, Any]:
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0, 16.0, 16.0, 16.0], "factor": 4.0}
    return {"rope_type": "longrope", "rope_theta": theta, "original_max_position_embeddings": STEADY, **factors}


def phi3() -> PreTrainedConfig:
    config: Any = small_config("phi3")
    config.original_max_position_embeddings = STEADY
    config.rope_parameters = longrope()
    return config


def llama() -> PreTrainedConfig:
    config: Any = small_config("llama")
    config.rope_parameters = longrope()
    return config


def dynamic() -> PreTrainedConfig:
    config: Any = small_config("llama")
    config.max_position_embeddings = STEADY
    config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    return config


def by_layer() -> PreTrainedConfig:
    config: Any = small_config("gemma3_text")
    config.rope_parameters = {**config.rope_parameters, "full_attention": longrope()}
    config.layer_types = ["sliding_attention", "full_attention"]
    return config


MODELS = [phi3, llama, dynamic, by_layer]


def policy_of(config: PreTrainedConfig) -> Policy:
    """With weights so large that an answer changes with the factors."""
    lm = small_model(config)
    with torch.no_grad():
        for weight in lm.parameters():
            weight.mul_(8.0 if weight.ndim > 1 else 1.0)
    return Policy(lm, TOKENS).eval()


def by_transformers(policy: Policy, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    settings = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": [98], "pad_token_id": 0}
    written: list[int] = policy.lm.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)[0].tolist()
    return written[len(prompt) :]


def answers(
    policy: Policy, sampling: Sampling = GREEDY, prompts: Prompts = PROMPTS, **options: Any
) -> list[list[list[int]]]:
    given = {"ends": [98], "pad": 0, "new_tokens": NEW, "batch": 4} | options
    return [[one.ids for one in row] for row in generate(policy, prompts, sampling=sampling, **given)]


@pytest.mark.filterwarnings("ignore:.*exceeded the model's predefined maximum")
@pytest.mark.parametrize("refilled", [None, False])
@pytest.mark.parametrize("config", MODELS)
def test_answers_are_those_of_transformers_to_each_prompt_alone(
    config: Callable[[], PreTrainedConfig], refilled: bool | None
) -> None:
    expected = [by_transformers(policy_of(config()), prompt) for prompt in PROMPTS]
    written = answers(policy_of(config()), refilled=refilled)
    assert [one for (one,) in written] == [[token for token in row if token != 98] for row in expected]


@pytest.mark.parametrize("config", MODELS)
def test_drawn_answers_are_the_same_however_prompts_are_batched(config: Callable[[], PreTrainedConfig]) -> None:
    policy = policy_of(config())
    assert answers(policy, DRAWN, batch=1) == answers(policy, DRAWN, batch=64)


SHARES = (PROMPTS[1:], PROMPTS[:1])
"""The second rank has no prompt that becomes long, and waits for the first one's."""


def answer_share(folder: str) -> None:
    """On each of two ranks, with a share of the weights and of the prompts."""
    policy = policy_of(dynamic())
    shard(policy, init_device_mesh("cpu", (2,)))
    torch.save(answers(policy, prompts=SHARES[dist.get_rank()]), f"{folder}/{dist.get_rank()}.pt")


@pytest.mark.usefixtures("warm_ranks")
def test_ranks_that_share_the_weights_answer_in_step(tmp_path: Path) -> None:
    ranks.start(2, answer_share, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert second + first == answers(policy_of(dynamic()))


def test_texts_that_stay_short_are_refilled(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    begin = refill.Refill.__init__

    def begun(self: Any, policy: Policy, task: Any, requests: Any) -> None:
        seen.extend(len(task.prompts[prompt]) for prompt, _ in requests)
        begin(self, policy, task, requests)

    monkeypatch.setattr(refill.Refill, "__init__", begun)
    policy = policy_of(phi3())
    answers(policy)
    assert seen == [12, 5, 3]
    assert way_of_writing(policy) == (
        "in refilled batches; of texts that may pass 24 tokens, prompts of one length at a time"
    )


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": STEADY},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ],
)
def test_other_ropes_rotate_every_text_alike(rope: dict[str, Any]) -> None:
    config: Any = small_config("llama")
    config.rope_parameters = {"rope_theta": 10000.0, "original_max_position_embeddings": STEADY, **rope}
    assert length_rule(policy_of(config)) is None
