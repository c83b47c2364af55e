"""What a design makes of one chunk of tokens: plain PyTorch, run as it is or through torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor

from qtarget.math.distribution import dot, finite
from qtarget.math.target import Design
from qtarget.math.tokens import Tokens
from qtarget.math.view import TokenView

BACKEND = "inductor"  # Triton on NVIDIA GPUs, C++ on CPUs
Scores = tuple[tuple[Tensor, ...], Tensor | None]
Score = Callable[[Tensor, Tokens], Scores]


def scorer(design: Design, *, wants_gradient: bool, compiled: bool = False) -> Score:
    """(logits [n, V], tokens) → the fields of TokenStatistics in order, and s·∂loss/∂logits [n, V] where wanted."""
    if compiled:
        return partial(_run_compiled, design, wants_gradient)
    return partial(evaluate, design, wants_gradient)


def evaluate(design: Design, wants_gradient: bool, logits: Tensor, tokens: Tokens) -> Scores:
    """No side effects and no look at a value, so that torch.compile makes one graph of it."""
    logp = torch.log_softmax(logits, dim=-1)
    view = tokens.view(logp)
    target = design(view)
    gradient = target.gradient(view)
    gap, kl_to_target = target.distances(view, gradient)
    values = (
        target.value(view),
        -view.label_logp,
        target.label_mass,
        target.weight,
        target.mass,
        target.trust(view),
        view.policy.entropy,
        gap,
        kl_to_target,
        _drift(view),
        _prior_nll(view),
    )
    return values, gradient.mul_(tokens.scale[:, None]) if wants_gradient else None


def _drift(view: TokenView) -> Tensor:
    prior = view.references.get("prior")
    if prior is None or not prior.is_exact:
        return torch.full_like(view.label_logp, torch.nan)
    return dot(view.policy.p, finite(view.logp) - finite(prior.logp))


def _prior_nll(view: TokenView) -> Tensor:
    prior = view.references.get("prior")
    return torch.full_like(view.label_logp, torch.nan) if prior is None else -prior.label_logp


@lru_cache(maxsize=64)
def _compiled(design: Design, wants_gradient: bool) -> Score:
    return torch.compile(partial(evaluate, design, wants_gradient), fullgraph=True, backend=BACKEND)


def graphs_compiled() -> int:
    """How many graphs torch.compile has made in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _run_compiled(design: Design, wants_gradient: bool, logits: Tensor, tokens: Tokens) -> Scores:
    if len(logits) == 1:  # torch.compile makes a graph of its own for one row
        return evaluate(design, wants_gradient, logits, tokens)
    for tensor in (logits, *tokens.tensors()):
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
    # Past its limit of graphs torch.compile would go on eagerly without a word; here, and only here, it fails.
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        return _compiled(design, wants_gradient)(logits, tokens)
