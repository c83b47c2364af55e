"""What a design makes of one chunk of tokens: plain PyTorch, run as it is or through torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from qtarget.math.distribution import dot, finite, lazy
from qtarget.math.target import Design, InducedTarget, Target
from qtarget.math.tokens import Tokens
from qtarget.math.view import TokenView
from qtarget.measures import MEASURES, Measure

BACKEND = "inductor"  # Triton on NVIDIA GPUs, C++ on CPUs
ChunkResult = tuple[tuple[Tensor, ...], Tensor | None]
ChunkLoss = Callable[[Tensor, Tokens], ChunkResult]


@dataclass(frozen=True)
class ChunkTokens:
    """n tokens, and what a design made of them. What goes over [n, V] is made when a measure asks for it."""

    view: TokenView
    target: Target | InducedTarget

    @lazy
    def gradient(self) -> Tensor:
        """∂loss/∂logits [n, V]."""
        return self.target.gradient(self.view)

    def scaled_gradient(self, scale: Tensor, out: Tensor | None) -> Tensor:
        """s·∂loss/∂logits [n, V] for s [n], in `out`; in one pass where no measure has asked for the gradient."""
        if self._pulls_the_label_alone:
            return self.target.gradient(self.view, scale, out)
        return torch.mul(self.gradient, scale[:, None], out=out)

    @property
    def gap(self) -> Tensor:
        """½‖m·p − Q‖₁ [n], step size aside; where only the label is pulled, without a pass over [n, V]."""
        if self._pulls_the_label_alone:
            return self.target.label_mass * self._room
        length: Tensor = torch.linalg.vector_norm(self.gradient, ord=1, dim=-1)
        return 0.5 * length / self._step

    @property
    def kl_to_target(self) -> Tensor:
        """KL(Q‖p) [n], step size aside; NaN where Q has negative entries."""
        if self._pulls_the_label_alone:
            return _kl_of_label(self.target.label_mass, self._room, self.view.label_logp)
        target = torch.addcdiv(self.view.policy.p, self.gradient, -self._step[:, None])
        signed = target.amin(-1) < -1e-5  # beyond what rounding leaves below zero
        log_target = target.clamp_min_(0).log().clamp_min_(-1e30)
        return dot(target, log_target.sub_(self.view.policy.finite_logp)).masked_fill(signed, torch.nan)

    @property
    def drift(self) -> Tensor:
        """KL(p‖π_0) [n]; NaN where no prior is held in full."""
        view, prior = self.view, self.view.references.get("prior")
        if prior is None or not prior.is_exact:
            return torch.full_like(view.label_logp, torch.nan)
        theirs = finite(prior.logp)  # a copy
        return dot(view.policy.p, torch.sub(view.policy.finite_logp, theirs, out=theirs))

    @property
    def prior_nll(self) -> Tensor:
        """−log π_0(y) [n]; NaN without a prior."""
        prior = self.view.references.get("prior")
        return torch.full_like(self.view.label_logp, torch.nan) if prior is None else -prior.label_logp

    @property
    def _pulls_the_label_alone(self) -> bool:
        return isinstance(self.target, Target) and len(self.target.parts) == 0

    @property
    def _room(self) -> Tensor:
        return -torch.expm1(self.view.label_logp)

    @property
    def _step(self) -> Tensor:
        return self.target.weight.abs().clamp_min(torch.finfo(self.view.logp.dtype).tiny)


def _kl_of_label(label_mass: Tensor, room: Tensor, label_logp: Tensor) -> Tensor:
    """KL(Q‖p) [n] of Q = γ·δ + (1 − γ)·p; room: 1 − p_y."""
    left = 1 - label_mass
    at_label = label_mass + left * label_logp.exp()
    return torch.xlogy(left * room, left) + torch.xlogy(at_label, at_label) - at_label * label_logp


@dataclass(frozen=True)
class Scoring:
    """How chunks of logits are scored.

    in_place: the gradient takes the place of the logits. has_zeros: whether logits may be −∞, as those of padded rows.
    """

    design: Design
    wants_gradient: bool
    measures: tuple[Measure, ...] = MEASURES
    in_place: bool = False
    has_zeros: bool = True


def chunk_loss(scoring: Scoring, *, compiled: bool = False) -> ChunkLoss:
    """(logits [n, V], tokens) → measures in their order, and s·∂loss/∂logits [n, V] where wanted and not in place."""
    score: ChunkLoss = partial(_run_compiled if compiled else evaluate, scoring)
    return partial(_run_kept, _first_blocks[-1], scoring, score) if _first_blocks else score


@dataclass(frozen=True)
class Block:
    """A copy of logits [n, V] that a loss has scored, with their tokens, and how it did."""

    scoring: Scoring
    logits: Tensor
    tokens: Tokens

    @torch.no_grad()
    def score(self, logits: Tensor, *, compiled: bool) -> None:
        """Score a copy of them again, which may be overwritten."""
        with torch.autocast(logits.device.type, enabled=False):
            chunk_loss(self.scoring, compiled=compiled)(logits, self.tokens)


_first_blocks: list[list[Block]] = []


@contextmanager
def keeping_first_block() -> Iterator[list[Block]]:
    """Yields a list that holds, at the end, the first block that was scored within, where there was one."""
    kept: list[Block] = []
    _first_blocks.append(kept)
    try:
        yield kept
    finally:
        _first_blocks.pop()


def _run_kept(kept: list[Block], scoring: Scoring, score: ChunkLoss, logits: Tensor, tokens: Tokens) -> ChunkResult:
    if not kept:
        kept.append(Block(scoring, logits.clone(), tokens))
    return score(logits, tokens)


def evaluate(scoring: Scoring, logits: Tensor, tokens: Tokens) -> ChunkResult:
    """Look at no value, so that torch.compile makes one graph of it."""
    view = tokens.view(torch.log_softmax(logits, dim=-1), has_zeros=scoring.has_zeros)
    scored = ChunkTokens(view, scoring.design(view))
    values = tuple([measure.read(scored) for measure in scoring.measures])
    if not scoring.wants_gradient:
        return values, None
    gradient = scored.scaled_gradient(tokens.scale, logits if scoring.in_place else None)
    return values, None if scoring.in_place else gradient


@lru_cache(maxsize=64)
def _compiled(scoring: Scoring) -> ChunkLoss:
    return torch.compile(partial(evaluate, scoring), fullgraph=True, backend=BACKEND)


def graphs_compiled() -> int:
    """How many graphs torch.compile has made in this process. The compiler isn't imported for that."""
    compiler = vars(torch).get("_dynamo")
    return int(compiler.utils.counters["stats"]["unique_graphs"]) if compiler else 0


def _run_compiled(scoring: Scoring, logits: Tensor, tokens: Tokens) -> ChunkResult:
    if len(logits) == 1:  # torch.compile makes a graph of its own for one row
        return evaluate(scoring, logits, tokens)
    for tensor in (logits, *tokens.tensors()):
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
    # Past its limit of graphs torch.compile would go on eagerly without a word; here, and only here, it fails.
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        return _compiled(scoring)(logits, tokens)
