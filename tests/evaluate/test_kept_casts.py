"""Under bf16-mixed the base of an adapter is cast once an evaluation, and nothing else changes by it."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from qtarget.data.chat import ChatFormat
from qtarget.data.example import Demonstration
from qtarget.evaluate import heldout
from qtarget.evaluate.heldout import Evaluation, Evaluator
from qtarget.model.adapter import Lora
from qtarget.model.builtin import tiny_config, tiny_model, tiny_tokenizer
from qtarget.model.policy import Policy

ROWS = [
    Demonstration(
        ({"role": "user", "content": f"{n} + {n}"}, {"role": "assistant", "content": str(2 * n)}),
        row=n,
        entry={"verifier": "math", "answer": "4"},
    )
    for n in range(4)
]


def adapted() -> Policy:
    policy = Policy(tiny_model(tiny_config(len(tiny_tokenizer()))), len(tiny_tokenizer()))
    return Lora(rank=4)(policy)


class Casts(TorchDispatchMode):
    """How often each weight is cast, by its place in memory."""

    def __init__(self, weights: list[nn.Parameter]) -> None:
        super().__init__()
        self.times = {weight.data_ptr(): 0 for weight in weights}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.times:
            self.times[args[0].data_ptr()] += 1
        return func(*args, **(kwargs or {}))


def base_weights(policy: Policy) -> list[nn.Parameter]:
    layers = policy.decoder.layers
    return [m.weight for m in layers.modules() if isinstance(m, nn.Linear) and not m.weight.requires_grad]


def evaluated(policy: Policy) -> tuple[Evaluation, set[int]]:
    """And how often base weights were cast."""
    chat = ChatFormat(tiny_tokenizer())
    examples = [chat.encode(row)[0] for row in ROWS]
    autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    evaluator = Evaluator(tiny_tokenizer(), ROWS, examples, None, autocast, new_tokens=6)
    weights = base_weights(policy)
    with Casts(weights) as casts:
        result = evaluator(policy)
    assert len(casts.times) == len(weights) == 14
    return result, set(casts.times.values())


def test_the_base_of_an_adapter_is_cast_once_an_evaluation(monkeypatch: Any) -> None:
    policy = adapted()
    assert policy.skips_padding  # tried once; what autocast had kept until then is dropped with it
    result, times = evaluated(policy)
    assert times == {1}
    assert not any(weight.requires_grad for weight in base_weights(policy))

    @contextmanager
    def casting_anew(policy: Policy) -> Any:
        yield

    monkeypatch.setattr(heldout, "keeping_casts", casting_anew)
    expected, every = evaluated(policy)
    assert min(every) > 5  # at each of six tokens, and where rows are read
    assert result.metrics == expected.metrics
    assert [sample.answer for sample in result.samples] == [sample.answer for sample in expected.samples]
