"""A causal language model, split where the loss needs it: hidden states and head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from qtarget.errors import QTargetError
from qtarget.math.head import Head
from qtarget.model import architecture


@contextmanager
def evaluating(policy: nn.Module) -> Iterator[None]:
    """Dropout off meanwhile; the mode and autocast's cache are afterwards as training needs them."""
    was_training = policy.training
    policy.eval()
    try:
        yield
    finally:
        policy.train(was_training)
        torch.clear_autocast_cache()  # before torch 2.10 the casts kept there had no graph, for the training pass too


class Policy(nn.Module):
    """Wraps a transformers causal LM. forward: input_ids [B, T] → last hidden states [B, T, D].

    position_ids [B, T], given where documents share a row, each counting from 0: transformers then keeps them from
    seeing each other, as long as there is no mask and no cache.
    """

    def __init__(self, lm: Any, vocab_size: int, *, compiled: bool = False) -> None:
        """vocab_size: the tokenizer's; rows of the head beyond it are padding and never receive probability.

        compiled: forward goes through torch.compile; generation doesn't.
        """
        super().__init__()
        self.lm = lm
        self.vocab_size = vocab_size
        self.compiled = compiled
        self.adapter_off_is_base = True
        """Whether the model with its adapter switched off is the one that training started from."""

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        read = self._read(input_ids=input_ids, position_ids=position_ids, use_cache=False)
        return self.reading(read.last_hidden_state)

    @cached_property
    def _read(self) -> Callable[..., Any]:
        return torch.compile(self.decoder, dynamic=True) if self.compiled else self.decoder

    @property
    def decoder(self) -> Any:
        """The part of the model that makes hidden states, as a module that isn't compiled."""
        return architecture.decoder_of(self.lm)

    def reading(self, hidden: Tensor) -> Tensor:
        """The decoder's hidden states → what the output layer reads: the same for almost every model."""
        between = architecture.between(self.lm)
        read: Tensor = hidden if between is None else between(hidden)
        return read

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter is trained on a model that stays as it is."""
        return hasattr(self.lm, "disable_adapter")

    def generate(self, **settings: Any) -> Tensor:
        """transformers' generate. A method of the policy's own, because a sharded one has to be gathered around it."""
        written: Tensor = self.lm.generate(**settings)
        return written

    def next_scores(self, **inputs: Any) -> Tensor:
        """transformers' forward with a cache: logits [n, V] of the token after the last.

        A method for the same reason.
        """
        only_last = {"logits_to_keep": 1} if self._can_keep_last else {}
        scores: Tensor = self.lm(**inputs, use_cache=True, return_dict=True, **only_last).logits[:, -1]
        return scores

    @cached_property
    def _can_keep_last(self) -> bool:
        return "logits_to_keep" in signature(self.base.forward).parameters

    @property
    def base(self) -> Any:
        """The model of transformers, without an adapter's wrapper."""
        return self.lm.get_base_model() if self.has_adapter else self.lm

    @property
    def head(self) -> Head:
        return architecture.head_of(self.lm, self.vocab_size)


def cast_products(policy: Policy, dtype: torch.dtype) -> None:
    """The weights of linear layers in the dtype that autocast would cast them to at every use: the same bits.

    For a model that stays as it is. Embeddings and norms, whose sums run in fp32, are left; so is the head, which
    may share the embeddings' weight.
    """
    for module in _product_layers(policy):
        module.to(dtype)


def linear_weights(policy: Policy) -> Iterator[nn.Parameter]:
    """The weights that `cast_products` casts."""
    for module in _product_layers(policy):
        yield from module.parameters()


def _product_layers(policy: Policy) -> list[nn.Linear]:
    head = architecture.output_layer(policy.lm)
    return [module for module in policy.modules() if isinstance(module, nn.Linear) and module is not head]


@torch.no_grad()
def check_packing(policy: Policy) -> None:
    """Raise QTargetError for a model in which documents that share a row see each other, whatever their positions."""
    ids = torch.arange(8, device=policy.lm.device)[None] % policy.vocab_size
    apart = torch.cat([ids[:, :4], ids[:, :4]])
    together = apart.reshape(1, 8)
    positions = torch.arange(4, device=ids.device).repeat(2)[None]
    with evaluating(policy):
        expected, got = policy(apart).flatten(0, 1), policy(together, positions).flatten(0, 1)
    if not torch.allclose(got, expected, atol=1e-2 * float(expected.abs().max()), rtol=0):
        raise QTargetError(
            f"{type(policy.lm).__name__} lets demonstrations that share a row see each other: set data.packing=null"
        )
