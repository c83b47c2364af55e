"""Models that rotate long texts otherwise: each text is read, and answered, as transformers does it alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from tiny_architectures import TOKENS, small_config, small_model
from torch.distributed.device_mesh import init_device_mesh
from transformers import PreTrainedConfig

from qtarget.data.batch import Collate
from qtarget.data.chat import ChatFormat
from qtarget.data.example import Demonstration, Example
from qtarget.evaluate import refill
from qtarget.evaluate.generate import generate, way_of_writing
from qtarget.evaluate.heldout import Evaluator
from qtarget.evaluate.requests import Prompts
from qtarget.evaluate.sampling import GREEDY, Sampling
from qtarget.model.builtin import tiny_tokenizer
from qtarget.model.cache import CachePlan
from qtarget.model.cache_build import ensure
from qtarget.model.cached_scores import Recipe
from qtarget.model.frozen import FrozenModel
from qtarget.model.policy import Policy
from qtarget.model.rotation import length_rule
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


def policy_of(config: PreTrainedConfig, vocabulary: int = TOKENS) -> Policy:
    """With weights so large that an answer changes with the factors."""
    lm = small_model(config)
    with torch.no_grad():
        for weight in lm.parameters():
            weight.mul_(8.0 if weight.ndim > 1 else 1.0)
    return Policy(lm, vocabulary).eval()


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


def demonstrations() -> tuple[list[Demonstration], list[Example]]:
    """Some shorter than STEADY, and some longer."""
    chat = ChatFormat(tiny_tokenizer())
    talks = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "bcd" * n}] for n in range(1, 9)]
    rows = [Demonstration(talk, row=number) for number, talk in enumerate(talks)]
    examples = [example for row in rows for example in chat.encode(row)]
    first = accumulate((example.labels for example in examples), initial=0)
    return rows, [replace(example, first_label=label) for example, label in zip(examples, first, strict=False)]


def nll_alone(config: PreTrainedConfig, example: Example) -> float:
    """Of a row by transformers."""
    ids = torch.tensor([example.input_ids])
    logp = policy_of(config, config.vocab_size).lm(ids).logits[0].log_softmax(-1)
    of_labels = logp[:-1].gather(1, ids[0, 1:, None])[:, 0]
    return -float(of_labels.detach()[torch.tensor(example.supervised[1:])].sum())


@pytest.mark.parametrize("config", MODELS)
def test_held_out_rows_and_the_scores_of_a_reference_are_those_of_each_row_alone(
    config: Callable[[], PreTrainedConfig], tmp_path: Path
) -> None:
    made: Any = config()
    made.vocab_size = len(tiny_tokenizer())
    rows, examples = demonstrations()
    assert min(map(len, examples)) < STEADY < max(map(len, examples)) - 1
    alone = [nll_alone(made, example) for example in examples]
    policy = policy_of(made, made.vocab_size)
    policy(torch.ones(1, 60, dtype=torch.long))  # a long text that it may remember
    evaluated = Evaluator(tiny_tokenizer(), rows, examples, FrozenModel(policy), nullcontext)(policy)
    assert [row.nll for row in evaluated.row_losses] == pytest.approx(alone, rel=1e-4)
    assert evaluated.metrics["kl_prior"] == pytest.approx(0, abs=1e-5)
    cache = CachePlan(tmp_path, Recipe("label", 5, "float32", "32-true"), examples, {}, {}, Collate(256))
    ensure(cache, lambda done: policy, lambda done: None, print)
    scores = load_file(tmp_path / "shard-00000.safetensors")["statistics"][:, 0]
    assert [-float(part.sum()) for part in scores.split([one.labels for one in examples])] == pytest.approx(
        alone, rel=1e-4
    )


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
