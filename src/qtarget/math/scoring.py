"""What a design makes of one chunk of tokens: plain PyTorch, run as it is or through torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from qtarget.math.distribution import dot, finite
from qtarget.math.target import Design, InducedTarget, Target
from qtarget.math.tokens import Tokens
from qtarget.math.view import TokenView
from qtarget.measures import MEASURES, Measure

BACKEND = "inductor"  # Triton on NVIDIA GPUs, C++ on CPUs
ChunkResult = tuple[tuple[Tensor, ...], Tensor | None]
ChunkLoss = Callable[[Tensor, Tokens], ChunkResult]


@dataclass(frozen=True)
class ChunkTokens:
    """n tokens, and what a design made of them."""

    view: TokenView
    target: Target | InducedTarget
    gap: Tensor  # [n]
    kl_to_target: Tensor  # [n]

    @property
    def drift(self) -> Tensor:
        """KL(p‖π_0) [n]; NaN where no prior is held in full."""
        view, prior = self.view, self.view.references.get("prior")
        if prior is None or not prior.is_exact:
            return torch.full_like(view.label_logp, torch.nan)
        return dot(view.policy.p, finite(view.logp) - finite(prior.logp))

    @property
    def prior_nll(self) -> Tensor:
        """−log π_0(y) [n]; NaN without a prior."""
        prior = self.view.references.get("prior")
        return torch.full_like(self.view.label_logp, torch.nan) if prior is None else -prior.label_logp


def chunk_loss(
    design: Design, *, wants_gradient: bool, measures: tuple[Measure, ...] = MEASURES, compiled: bool = False
) -> ChunkLoss:
    """(logits [n, V], tokens) → the measures in their order, and s·∂loss/∂logits [n, V] where wanted."""
    if compiled:
        return partial(_run_compiled, design, wants_gradient, measures)
    return partial(evaluate, design, wants_gradient, measures)


def evaluate(
    design: Design, wants_gradient: bool, measures: tuple[Measure, ...], logits: Tensor, tokens: Tokens
) -> ChunkResult:
    """No side effects and no look at a value, so that torch.compile makes one graph of it."""
    logp = torch.log_softmax(logits, dim=-1)
    view = tokens.view(logp)
    target = design(view)
    gradient = target.gradient(view)
    scored = ChunkTokens(view, target, *target.distances(view, gradient))
    values = tuple([measure.read(scored) for measure in measures])
    return values, gradient.mul_(tokens.scale[:, None]) if wants_gradient else None


@lru_cache(maxsize=64)
def _compiled(design: Design, wants_gradient: bool, measures: tuple[Measure, ...]) -> ChunkLoss:
    return torch.compile(partial(evaluate, design, wants_gradient, measures), fullgraph=True, backend=BACKEND)


def graphs_compiled() -> int:
    """How many graphs torch.compile has made in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _run_compiled(
    design: Design, wants_gradient: bool, measures: tuple[Measure, ...], logits: Tensor, tokens: Tokens
) -> ChunkResult:
    if len(logits) == 1:  # torch.compile makes a graph of its own for one row
        return evaluate(design, wants_gradient, measures, logits, tokens)
    for tensor in (logits, *tokens.tensors()):
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
    # Past its limit of graphs torch.compile would go on eagerly without a word; here, and only here, it fails.
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        return _compiled(design, wants_gradient, measures)(logits, tokens)
