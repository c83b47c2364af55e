"""Models that rotate a short text otherwise than a long one: transformers' rope types "longrope" and "dynamic".

The longest text of a forward pass decides for all its rows (`dynamic_rope_update` of transformers 5.23). Keys that were
cached before stay rotated as they were, or are all made anew at that step (`generate` of Phi-3). So a row is read as it
is alone only among rows that are rotated as it is, and has the answer that it has alone only among rows that change at
the same step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

import torch

from qtarget.model.policy import Policy

T = TypeVar("T", bound=Sized)


@dataclass(frozen=True)
class LengthRule:
    """steady: tokens up to which every text is rotated alike. settled: tokens beyond which it is so again; ∞: never."""

    steady: int
    settled: float

    def together(self, tokens: int) -> float:
        """The same number for prompts of so many tokens that change at the same steps."""
        return min(tokens, self.settled + 1)

    def alike(self, tokens: int) -> float:
        """The same number for texts of so many tokens that are rotated alike."""
        return 0 if tokens <= self.steady else self.together(tokens)

    @property
    def remembers(self) -> bool:
        """Whether a model stays as its longest text made it until it reads one of fewer than `steady` tokens."""
        return math.isinf(self.settled)


def length_rule(policy: Policy) -> LengthRule | None:
    """None: the rotation of a token depends on its place alone."""
    config = policy.base.config.get_text_config(decoder=True)
    rules = [rule for rope in _ropes(config) if (rule := _rule(config, rope))]
    if not rules:
        return None
    return LengthRule(min(rule.steady for rule in rules), max(rule.settled for rule in rules))


@torch.no_grad()
def forget_length(policy: Policy) -> None:
    """Have a model that remembers its longest text read a short one. Collective where the policy is sharded."""
    rule = length_rule(policy)
    if rule and rule.remembers:
        policy(torch.zeros(1, 1, dtype=torch.long, device=policy.lm.device))


def alike(texts: Iterable[T], policy: Policy) -> list[list[T]]:
    """Texts in order of length, apart where the model rotates them otherwise."""
    rule, by_length = length_rule(policy), sorted(texts, key=len)
    if rule is None:
        return [by_length]
    return [list(group) for _, group in groupby(by_length, lambda text: rule.alike(len(text)))]


def _ropes(config: Any) -> Iterator[Mapping[str, Any]]:
    """The parameters of the model, or those of each kind of its layers."""
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [one for one in rope.values() if isinstance(one, Mapping)]
    yield from nested or [rope]


def _rule(config: Any, rope: Mapping[str, Any]) -> LengthRule | None:
    kind = rope.get("rope_type", "default")
    if "dynamic" in kind:
        return LengthRule(config.max_position_embeddings, math.inf)
    if kind == "longrope":
        limit = rope["original_max_position_embeddings"]
        return LengthRule(limit, limit)
    return None
