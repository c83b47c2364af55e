"""w·CE(Q, p) and its gradient w·(m·p − Q): from logits, or chunk by chunk from hidden states and head."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Unpack

import torch
from torch import Tensor

from qtarget import checks
from qtarget.errors import QTargetError
from qtarget.math.derivatives import attach, check_first_order
from qtarget.math.head import Head, matmul_dtype
from qtarget.math.products import add_product, product
from qtarget.math.schedule import scheduled
from qtarget.math.scope_values import TokenTable, scope_values_of, scoped_parts
from qtarget.math.scoring import ChunkLoss, Scoring, chunk_loss
from qtarget.math.target import Design, check_references
from qtarget.math.tokens import IGNORE, LossInputs, Tokens
from qtarget.measures import MEASURES, Measure

__all__ = ["IGNORE", "LossOutput", "TokenMeasures", "dense_loss", "linear_loss", "token_table"]


@dataclass(frozen=True)
class TokenMeasures:
    """What is known of each of the N supervised tokens; every field is [N], detached, fp32 or better."""

    loss: Tensor  # the design's objective, nats; w·CE(Q, p) unless it is an Induced one
    nll: Tensor  # −log p(y), nats: comparable between designs, as `loss` is not
    reliance: Tensor  # mass of the label in Q: the part's γ; γ/(γ + λ) of Anchored and Induced
    weight: Tensor  # step size: the part's w; w·(γ + λ) of Anchored and Induced, w·C of Signed
    mass: Tensor  # w·(positive masses of Q): what normalize=weight_sum adds up, 0 where a token isn't pulled
    trust: Tensor  # w·(Q_y − m·p_y)/(1 − p_y)
    entropy: Tensor  # H(p), nats
    gap: Tensor  # ½‖m·p − Q‖₁: total variation between policy and target, step size aside
    kl_to_target: Tensor  # KL(Q‖p), nats; NaN where Q has negative entries
    kl_prior: Tensor  # KL(p‖π_0), nats: how far the policy has gone; NaN where no full prior is given
    prior_nll: Tensor  # −log π_0(y), nats; NaN where no prior is given

    others: Mapping[str, Tensor] = field(default_factory=dict, kw_only=True)
    """Measures beside these, by name."""

    def of(self, name: str) -> Tensor:
        """A measure by its name, [N]."""
        value: Tensor = self.others[name] if name in self.others else getattr(self, name)
        return value


USUAL = tuple(field.name for field in fields(TokenMeasures) if field.name != "others")
OPTIONAL = ("entropy", "gap", "kl_to_target", "kl_prior")
"""Measures that take passes over tokens × vocabulary, and may be left out."""


@dataclass(frozen=True)
class LossOutput(TokenMeasures):
    """Per-token measures and `total` = Σ_t s_t·loss_t, the only output with a graph.

    Gradients are accumulated in the forward, so a per-token upstream gradient can't be applied afterwards: give it as
    `token_scale` instead.
    """

    total: Tensor


def dense_loss(
    logits: Tensor,
    labels: Tensor,
    design: Design,
    *,
    chunk_size: int | None = None,
    compiled: bool = False,
    measures: Sequence[Measure] = (),
    unmeasured: Collection[str] = (),
    **given: Unpack[LossInputs],
) -> LossOutput:
    """The loss of `design` from logits [..., V] and labels [...], already shifted; −100 is not supervised.

        out = dense_loss(logits, labels, design, references={"teacher": Reference.full(logp)})
        (out.total / len(out.nll)).backward()

    chunk_size: tokens that go through the design at a time; None: as many as fit CHUNK_BYTES.
    compiled: a chunk goes through torch.compile: the same objective in fewer passes over memory.
    measures: measured of every token beside the usual ones, see `qtarget.measures`; they are the output's `others`.
    unmeasured: usual ones that nobody will read, of "entropy", "gap", "kl_to_target" and "kl_prior": they are NaN, and
    take no time. kl_to_target takes most, where more than the label is pulled.
    references: role → Reference over the same positions, flattened.
    columns: name → per-token data, shaped as labels.
    sequence_ids: shaped as labels; by default each row of [B, T] labels is a sequence.
    negatives: [..., K] token ids, −100 for none.
    progress: of the training run, in [0, 1], for designs with schedules.
    scope_values: part → [N], what a part with step scope made of the whole step; by default of these N tokens.
    `statistics` is its earlier name.
    token_scale: s_t, a number or shaped as labels.

    Returns the measures of the N supervised positions, and `total` = Σ_t s_t·loss_t. What to divide it by, the design's
    `normalize` says: len(out.loss) for tokens, (out.mass > 0).sum() for kept, out.mass.sum() for weight_sum.
    logits are float64, float32, bfloat16 or float16; all is computed in float32, of float64 logits in float64.
    Raises QTargetError for labels outside the vocabulary, NaN logits, shapes that differ, and references that hold less
    than the design reads; also for a second derivative, forward-mode derivatives and torch.func's transforms.
    """
    _check_floating(logits=logits)
    dtype = computed_in(logits.dtype)
    tokens = _prepare(design, labels, logits.shape[:-1], given, dtype)
    check_first_order(logits, given.get("token_scale"))
    flat = logits.reshape(-1, logits.shape[-1])[tokens.positions]
    compute = flat.detach().to(dtype)  # a copy of the supervised rows; a block's gradient takes the place of its logits
    wants_gradient = flat.requires_grad and torch.is_grad_enabled()
    chunks = tokens.chunks(chunk_size, logits.shape[-1])
    tokens = _with_scope_values(tokens, design, chunks, lambda rows: compute[rows])
    scoring = Scoring(design, wants_gradient, _measured(measures, unmeasured), in_place=True)
    score = chunk_loss(scoring, compiled=compiled)
    pieces = []
    for chunk in chunks:
        for rows, block in tokens.blocks(chunk, logits.shape[-1]):
            pieces.append(_score(score, scoring, compute[rows], block, rows.start)[0])
    return _output(pieces, scoring.measures, tokens, [(flat, compute if wants_gradient else None)])


def linear_loss(
    hidden: Tensor,
    head: Head | Tensor,
    labels: Tensor,
    design: Design,
    *,
    chunk_size: int | None = None,
    compiled: bool = False,
    measures: Sequence[Measure] = (),
    unmeasured: Collection[str] = (),
    **given: Unpack[LossInputs],
) -> LossOutput:
    """`dense_loss` from hidden states [..., D] and a head (weight [V, D] or `Head`), never holding N × V.

        out = linear_loss(hidden, lm_head.weight, labels, design)
        (out.total / len(out.nll)).backward()

    Each chunk's gradient is formed in the forward and multiplied by the head at once. What stays are the gradients of
    the hidden states [N, D] and of the head [V, D], in fp32; what needs none (a frozen head, validation) costs none.
    Unsupervised positions never reach the head. A design that looks at whole sequences goes through the head twice,
    first for the labels' probabilities. float16 is multiplied in float32, since its range would lose gradients;
    bfloat16 is faster.
    """
    head = _as_head(head, hidden)
    dtype = matmul_dtype(hidden)
    tokens = _prepare(design, labels, hidden.shape[:-1], given, computed_in(dtype))
    check_first_order(hidden, head.weight, head.bias, given.get("token_scale"))
    states = hidden.reshape(-1, hidden.shape[-1])[tokens.positions]
    grads = _HeadGradients.wanted_by(states, head)
    cast = head.cast(dtype)
    chunks = tokens.chunks(chunk_size, head.weight.shape[0])
    tokens = _with_scope_values(tokens, design, chunks, lambda rows: cast.logits(states[rows], dtype))
    scoring = Scoring(
        design,
        grads.wanted,
        _measured(measures, unmeasured),
        in_place=head.softcap is None,  # whose slope is read off the logits
        has_zeros=head.is_padded or head.bias is not None,  # an entry of which may be −∞
    )
    score = chunk_loss(scoring, compiled=compiled)
    pieces = []
    with torch.no_grad():
        buffer = states.new_empty(
            max((rows.stop - rows.start for rows in chunks), default=0), len(head.weight), dtype=dtype
        )
        for chunk in chunks:
            hidden_rows = states[chunk].to(dtype)
            products = cast.products(hidden_rows, dtype, out=buffer[: len(hidden_rows)])
            for rows, block in tokens.blocks(chunk, len(head.weight)):
                of_block = products[rows.start - chunk.start : rows.stop - chunk.start]
                logits = cast.finished(of_block)
                piece, grad_logits = _score(score, scoring, logits, block, rows.start)
                pieces.append(piece)
                if grad_logits is not None:
                    grads.at_products(logits, grad_logits, of_block, head=cast)
            grads.add(chunk, hidden_rows, products, head=cast)
    graph = [(states, grads.hidden), (head.weight, grads.weight), (head.bias, grads.bias)]
    return _output(pieces, scoring.measures, tokens, graph)


@torch.no_grad()
def token_table(
    hidden: Tensor,
    head: Head | Tensor,
    labels: Tensor,
    design: Design,
    *,
    chunk_size: int | None = None,
    **given: Unpack[LossInputs],
) -> TokenTable:
    """One micro-batch's part of the table that the scope values of `design` are made of.

        table = TokenTable.join([token_table(…) for each micro-batch of the step])
        values = scope_values_of(design, table)        # part → [tokens of the step]
        linear_loss(…, scope_values=the micro-batch's rows of them)

    Arguments are those of `linear_loss`.
    """
    head, dtype = _as_head(head, hidden), matmul_dtype(hidden)
    tokens = _prepare(design, labels, hidden.shape[:-1], given, computed_in(dtype))
    states = hidden.reshape(-1, hidden.shape[-1])[tokens.positions]
    cast, chunks = head.cast(dtype), tokens.chunks(chunk_size, head.weight.shape[0])
    return _table(tokens, design, chunks, lambda rows: cast.logits(states[rows], dtype))


def _as_head(head: Head | Tensor, hidden: Tensor) -> Head:
    if not isinstance(head, Head | Tensor):
        raise QTargetError(f"head must be its weight [V, D] or a qtarget.Head, got {type(head).__name__}")
    head = head if isinstance(head, Head) else Head(head)
    if head.weight.shape[1] != hidden.shape[-1]:
        raise QTargetError(f"head weight {tuple(head.weight.shape)} is not [V, {hidden.shape[-1]}]: is it transposed?")
    _check_floating(**{"hidden states": hidden, "head weight": head.weight})
    return head


FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _check_floating(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATING:
            legal = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATING)
            raise QTargetError(f"{name} must be one of {legal}; got {str(tensor.dtype).removeprefix('torch.')}")


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """What losses and measures of logits in `dtype` are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _prepare(design: Design, labels: Tensor, shape: torch.Size, given: LossInputs, dtype: torch.dtype) -> Tokens:
    tokens = Tokens.keep_supervised(labels, shape, dtype=dtype, **given)
    if given.get("progress") is None and (followed := dict(scheduled(design, 0.0))):
        raise QTargetError(f"{', '.join(followed)} of this design follows training: give progress, from 0 to 1")
    details = {role: reference.detail for role, reference in tokens.references.items()}
    tails = {role: reference.tail for role, reference in tokens.references.items() if reference.detail == "topk"}
    check_references(design, details, tails)
    return tokens


@torch.no_grad()
def _table(tokens: Tokens, design: Design, chunks: list[slice], logits_of: Callable[[slice], Tensor]) -> TokenTable:
    """The label's log-probability [N] under the policy and under every source that a part with a scope reads.

    And the entropy [N] of the sources that such a part names as its `entropy_of`.
    """
    parts = scoped_parts(design)
    sources = {"policy"} | {source for part in parts for source in getattr(part, "needs", {})}
    columns: dict[str, list[Tensor]] = {source: [] for source in sorted(sources)}
    named = (getattr(part, "entropy_of", None) for part in parts)
    entropy: dict[str, list[Tensor]] = {source: [] for source in named if source}
    for chunk in chunks:
        logits = logits_of(chunk)
        for rows, block in tokens.blocks(chunk, logits.shape[-1]):
            view = block.view(torch.log_softmax(logits[rows.start - chunk.start : rows.stop - chunk.start], dim=-1))
            for source, pieces in columns.items():
                pieces.append(view.of(source).label_logp)
            for source, pieces in entropy.items():
                pieces.append(view.of(source).entropy)
    empty = tokens.scale.new_zeros(0)
    logp, spread = (
        {source: torch.cat(pieces) if pieces else empty for source, pieces in held.items()}
        for held in (columns, entropy)
    )
    return tokens.table(logp, spread)


def _with_scope_values(
    tokens: Tokens, design: Design, chunks: list[slice], logits_of: Callable[[slice], Tensor]
) -> Tokens:
    """The tokens with the scope values that the design reads and that weren't given."""
    if all(part in tokens.scope_values for part in scoped_parts(design)):
        return tokens
    values = scope_values_of(design, _table(tokens, design, chunks, logits_of))
    return replace(tokens, scope_values={**values, **tokens.scope_values})


@torch.no_grad()
def _score(
    score: ChunkLoss, scoring: Scoring, logits: Tensor, tokens: Tokens, first: int
) -> tuple[Mapping[str, Tensor], Tensor | None]:
    """Tokens from the `first` on: measures by name, and s·∂loss/∂logits [n, V] where that is wanted."""
    with torch.autocast(logits.device.type, enabled=False):  # it would round sums to bf16
        values, gradient = score(logits, tokens)
    named = dict(zip((measure.name for measure in scoring.measures), values, strict=True))
    finite = torch.isfinite(named["nll"] + named["loss"] * tokens.scale)
    if "prior" in tokens.references:  # a part that compares with NaN makes a mask of it, and a finite loss
        finite &= ~torch.isnan(named["prior_nll"])
    if not finite.all():
        _raise_not_finite(named["nll"], named["loss"], tokens.scale, int((~finite).nonzero()[0, 0]), first)
    return named, logits if scoring.wants_gradient and scoring.in_place else gradient


def _raise_not_finite(nll: Tensor, loss: Tensor, scale: Tensor, row: int, offset: int) -> None:
    if not torch.isfinite(scale[row]):
        raise QTargetError(f"token_scale must be finite; it is {float(scale[row])} at supervised token {offset + row}")
    if torch.isfinite(nll[row] + loss[row]):
        raise QTargetError(f"the prior is NaN at supervised token {offset + row}: check its hidden states or numbers")
    what = f"a loss of {float(loss[row])}"
    if not torch.isfinite(nll[row]):
        nan = torch.isnan(nll[row])
        what = "NaN logits" if nan else "a label with probability 0 (a padded vocabulary row?)"
    raise QTargetError(
        f"{what} at supervised token {offset + row}: lower the learning rate, or check the model's weights"
    )


@dataclass
class _HeadGradients:
    """Gradients of the hidden states [N, D] and of the head, fp32 or fp64, None where not wanted.

    What the hidden states' and the weight's hold before the first chunk doesn't count.
    """

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @classmethod
    def wanted_by(cls, hidden: Tensor, head: Head) -> _HeadGradients:
        def buffer(tensor: Tensor | None) -> Tensor | None:
            if tensor is None or not tensor.requires_grad or not torch.is_grad_enabled():
                return None
            dtype = tensor.dtype if tensor.dtype == torch.float64 else torch.float32
            make = torch.empty if len(hidden) and tensor is not head.bias else torch.zeros
            return make(tensor.shape, dtype=dtype, device=tensor.device)

        return cls(buffer(hidden), buffer(head.weight), buffer(head.bias))

    @property
    def wanted(self) -> bool:
        return any(buffer is not None for buffer in (self.hidden, self.weight, self.bias))

    def at_products(self, logits: Tensor, grad_logits: Tensor, out: Tensor, *, head: Head) -> None:
        """∂L/∂logits of a block [n, V] → that of its products, in `out`; the bias takes its gradient."""
        grad_products = head.product_gradient(grad_logits, logits)
        if self.bias is not None:
            self.bias.add_(grad_products.sum(0))
        if grad_products is not out:  # fp32 logits without bias and scale are the products themselves
            out.copy_(grad_products)

    def add(self, rows: slice, hidden: Tensor, grad_products: Tensor, *, head: Head) -> None:
        """Of a chunk: hidden [n, D], grad_products [n, V] and the head's weight are in the dtype of products."""
        if self.hidden is not None:
            self.hidden[rows] = product(grad_products, head.weight.T)
        if self.weight is not None:
            add_product(self.weight, grad_products.T, hidden.T, is_first=rows.start == 0)


def _measured(others: Sequence[Measure], unmeasured: Collection[str]) -> tuple[Measure, ...]:
    """Every measure that is made. Raises QTargetError for one that can't be left out."""
    for name in unmeasured:
        checks.choice("a name in unmeasured", name, OPTIONAL)
    return (*(measure for measure in MEASURES if measure.name not in unmeasured), *others)


def _by_field(values: Mapping[str, Tensor]) -> dict[str, Any]:
    """Measures by name → fields of `TokenMeasures`; NaN where one was not made."""
    others = {name: value for name, value in values.items() if name not in USUAL}
    missing = torch.full_like(values["nll"], torch.nan)
    return {**{name: values.get(name, missing) for name in USUAL}, "others": others}


def _output(
    pieces: list[Mapping[str, Tensor]],
    measures: Sequence[Measure],
    tokens: Tokens,
    graph: list[tuple[Tensor | None, Tensor | None]],
) -> LossOutput:
    names = [measure.name for measure in measures]
    empty = tokens.scale.new_zeros(0)
    joined = {name: torch.cat([piece[name] for piece in pieces]) if pieces else empty for name in names}
    total = (joined["loss"] * tokens.scale).sum()
    wanted = [(tensor, gradient) for tensor, gradient in graph if tensor is not None and gradient is not None]
    return LossOutput(**_by_field(joined), total=attach(total, wanted) if wanted else total)
