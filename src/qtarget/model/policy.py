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
from qtarget.math.head import Head, matmul_dtype
from qtarget.model import architecture
from qtarget.model.unpadded import KINDS, Groups, Lengths, apart, knows_layers_of

TRIED = (12, 3, 2)
"""Lengths of the rows on which leaving padding out is tried: two groups, one of them with padding."""
ROUNDING, COARSE_ROUNDING = 1e-3, 1e-1
"""‖h′ − h‖ / ‖h‖ up to which states are those read with padding, and in 16 bits. A token too many moves one by more."""


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
    seeing each other, as long as there is no mask and no cache. lengths: of each row, the tokens of its documents.
    Where they are given, a CPU doesn't read the padding behind them, whose hidden states are then 0.
    """

    def __init__(self, lm: Any, vocab_size: int, *, compiled: bool = False, attention: str = "auto") -> None:
        """vocab_size: the tokenizer's; rows of the head beyond it are padding and never receive probability.

        compiled: forward goes through torch.compile; generation doesn't. attention: `model.attention`, for batches read
        without their padding; other batches go by the configuration of `lm`.
        """
        super().__init__()
        self.lm = lm
        self.vocab_size = vocab_size
        self.compiled = compiled
        self.attention = attention
        self.adapter_off_is_base = True
        """Whether the model with its adapter switched off is the one that training started from."""

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None, lengths: Lengths | None = None) -> Tensor:
        if lengths is not None and input_ids.device.type == "cpu" and self.skips_padding:
            return self._unpadded(input_ids, lengths)
        return self._padded(input_ids, position_ids)

    def _padded(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        read = self._read(input_ids=input_ids, position_ids=position_ids, use_cache=False)
        return self.reading(read.last_hidden_state)

    def _unpadded(self, input_ids: Tensor, lengths: Lengths) -> Tensor:
        groups = Groups.of(lengths, input_ids.shape[1], self.attention)
        ids, positions = groups.row(input_ids), groups.positions
        with apart(self.decoder.config):
            read = self.decoder(input_ids=ids, position_ids=positions, use_cache=False, groups=groups)
        return groups.spread(self.reading(read.last_hidden_state), input_ids.shape)

    @cached_property
    def skips_padding(self) -> bool:
        """Whether the padding of batches can be left out: it is tried once, on a few tokens.

        Not under torch.compile, which would compile every cut anew, nor with checkpointed activations, which are
        computed again when attention is the usual one. Ranks that share a model's weights try it together.
        """
        if self.compiled or self.attention not in KINDS or not knows_layers_of(self.decoder.config):
            return False
        return not self.base.is_activation_checkpointing and self._unpadded_is_padded()

    @torch.no_grad()
    def _unpadded_is_padded(self) -> bool:
        """Whether three rows of unequal length have the same hidden states either way."""
        ids = (torch.arange(36).view(3, 12) * 7 + 1) % self.vocab_size
        real = torch.arange(12) < torch.tensor(TRIED)[:, None]
        with evaluating(self), torch.random.fork_rng(devices=[]):
            try:
                expected = self._padded(ids)[real].float()
                got = self._unpadded(ids, [(length,) for length in TRIED])[real].float()
            except (TypeError, ValueError, AttributeError, RuntimeError, IndexError):  # of decoders that go another way
                return False
        off = (got - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-12)
        exact = matmul_dtype(got) != torch.bfloat16 and self.lm.dtype in (torch.float32, torch.float64)
        return float(off.max()) < (ROUNDING if exact else COARSE_ROUNDING)

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


@contextmanager
def keeping_casts(policy: Policy) -> Iterator[None]:
    """Within one autocast, without gradients: weights that are not trained are cast once, not at every forward.

    autocast keeps the casts of those weights alone that need gradients (torch 2.13.0), so the base of an adapter counts
    as such meanwhile. Weights that are sharded over devices are left as they are.
    """
    layers = [module for module in policy.modules() if isinstance(module, nn.Linear)]
    still = [layer.weight for layer in layers if type(layer.weight) is nn.Parameter and not layer.weight.requires_grad]
    try:
        for weight in still:
            weight.requires_grad_(True)
        yield
    finally:
        for weight in still:
            weight.requires_grad_(False)


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
