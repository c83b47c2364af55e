"""w·CE(Q, p) and its gradient w·(m·p − Q): from logits, or chunk by chunk from hidden states and head."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from qtarget.errors import QTargetError
from qtarget.math.head import Head, matmul_dtype
from qtarget.math.reference import Reference
from qtarget.math.target import Design
from qtarget.math.view import TokenView

IGNORE = -100
"""Label of a position that is not supervised."""
CHUNK_BYTES = 2**27
"""Default size of one fp32 chunk × vocabulary tensor; a handful of them live at once."""


@dataclass(frozen=True)
class TokenStatistics:
    """What is known of each of the N supervised tokens; every field is [N], detached, fp32 or better."""

    loss: Tensor  # w·CE(Q, p), nats
    nll: Tensor  # −log p(y), nats: comparable between designs, as `loss` is not
    reliance: Tensor  # γ
    weight: Tensor  # w
    trust: Tensor  # w·(Q_y − m·p_y)/(1 − p_y)
    entropy: Tensor  # H(p), nats
    gap: Tensor  # ½‖m·p − Q‖₁: total variation between policy and target, step size aside
    kl_prior: Tensor  # KL(p‖π_0), nats: how far the policy has gone; NaN where no full prior is given


@dataclass(frozen=True)
class LossOutput(TokenStatistics):
    """Per-token statistics and `total` = Σ_t s_t·loss_t, the only output with a graph.

    Gradients are accumulated in the forward, so a per-token upstream gradient can't be applied afterwards: give it as
    `token_scale` instead.
    """

    total: Tensor


def dense_loss(
    logits: Tensor,
    labels: Tensor,
    design: Design,
    *,
    references: Mapping[str, Reference] | None = None,
    columns: Mapping[str, Tensor] | None = None,
    progress: float = 0.0,
    token_scale: Tensor | float = 1.0,
    chunk_size: int | None = None,
) -> LossOutput:
    """The loss of `design` from logits [..., V] and labels [...] (already shifted; −100 is not supervised).

    references: role → Reference over the same positions, flattened. columns: name → per-token data, shaped as labels.
    token_scale: s_t, a number or shaped as labels. Returns statistics of the N supervised positions.
    Raises QTargetError for labels outside the vocabulary, NaN logits and mismatched shapes.
    """
    tokens = _Tokens.keep_supervised(
        labels, logits.shape[:-1], references=references, columns=columns, token_scale=token_scale, progress=progress
    )
    flat = logits.reshape(-1, logits.shape[-1])[tokens.kept]
    compute = flat.detach() if flat.dtype == torch.float64 else flat.detach().float()
    gradient = torch.zeros_like(compute) if flat.requires_grad else None
    pieces = []
    for rows in tokens.chunks(chunk_size, logits.shape[-1]):
        statistics, grad_logits = _score(compute[rows], tokens, rows, design, wants_gradient=gradient is not None)
        pieces.append(statistics)
        if gradient is not None and grad_logits is not None:
            gradient[rows] = grad_logits
    return _output(pieces, tokens, [(flat, gradient)])


def linear_loss(
    hidden: Tensor,
    head: Head | Tensor,
    labels: Tensor,
    design: Design,
    *,
    references: Mapping[str, Reference] | None = None,
    columns: Mapping[str, Tensor] | None = None,
    progress: float = 0.0,
    token_scale: Tensor | float = 1.0,
    chunk_size: int | None = None,
) -> LossOutput:
    """`dense_loss` from hidden states [..., D] and a head (weight [V, D] or `Head`), never holding N × V.

    The gradient of each chunk is formed in the forward and pushed through the head at once; only gradients of the
    hidden states [N, D] and of the head [V, D] (fp32) stay. Where neither wants a gradient (validation) or the head is
    frozen, that work is skipped. Unsupervised positions never reach the head.
    """
    if not isinstance(head, Head | Tensor):
        raise QTargetError(f"head must be its weight [V, D] or a qtarget.Head, got {type(head).__name__}")
    head = head if isinstance(head, Head) else Head(head)
    if head.weight.shape[1] != hidden.shape[-1]:
        raise QTargetError(f"head weight {tuple(head.weight.shape)} is not [V, {hidden.shape[-1]}]: is it transposed?")
    tokens = _Tokens.keep_supervised(
        labels, hidden.shape[:-1], references=references, columns=columns, token_scale=token_scale, progress=progress
    )
    kept_hidden = hidden.reshape(-1, hidden.shape[-1])[tokens.kept]
    grads = _HeadGradients.zeros(kept_hidden, head)
    dtype = matmul_dtype(hidden)
    pieces = []
    for rows in tokens.chunks(chunk_size, head.weight.shape[0]):
        with torch.no_grad():
            chunk = kept_hidden[rows]
            logits = head.logits(chunk, dtype)
            statistics, grad_logits = _score(logits, tokens, rows, design, wants_gradient=grads.wanted)
            pieces.append(statistics)
            if grad_logits is not None:
                grads.add(rows, chunk, logits, grad_logits, head=head)
    return _output(pieces, tokens, [(kept_hidden, grads.hidden), (head.weight, grads.weight), (head.bias, grads.bias)])


@dataclass(frozen=True)
class _Tokens:
    """The supervised tokens of a call, and everything that goes with them."""

    kept: Tensor  # indices into the flattened positions
    labels: Tensor  # [N]
    references: Mapping[str, Reference]
    columns: Mapping[str, Tensor]
    scale: Tensor  # [N]
    progress: float

    @classmethod
    def keep_supervised(
        cls,
        labels: Tensor,
        positions: torch.Size,
        *,
        references: Mapping[str, Reference] | None,
        columns: Mapping[str, Tensor] | None,
        token_scale: Tensor | float,
        progress: float,
    ) -> _Tokens:
        _check_shapes(labels, positions, columns, token_scale)
        flat = labels.reshape(-1)
        kept = (flat != IGNORE).nonzero().squeeze(1)
        if kept.numel() == 0:
            warnings.warn("no supervised token in this batch: its loss and gradient are zero", stacklevel=3)
        scale = torch.as_tensor(token_scale, device=labels.device)
        return cls(
            kept=kept,
            labels=flat[kept],
            references={
                role: _aligned(role, ref, flat.numel()).select(kept) for role, ref in (references or {}).items()
            },
            columns={name: column.reshape(-1)[kept] for name, column in (columns or {}).items()},
            scale=scale.reshape(-1)[kept] if scale.numel() > 1 else scale.expand(kept.numel()),
            progress=progress,
        )

    def chunks(self, chunk_size: int | None, vocab_size: int) -> list[slice]:
        if self.labels.numel() and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < vocab_size:
            wrong = sorted({label for label in self.labels.tolist() if not 0 <= label < vocab_size})
            raise QTargetError(f"labels must lie in [0, {vocab_size}) or be {IGNORE}; got {wrong[:10]}")
        size = max(1, CHUNK_BYTES // (4 * vocab_size)) if chunk_size is None else chunk_size
        if size < 1:
            raise QTargetError(f"chunk_size must be at least 1, got {chunk_size}")
        count = self.labels.numel()
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]

    def view(self, logp: Tensor, rows: slice) -> TokenView:
        labels = self.labels[rows]
        return TokenView(
            logp=logp,
            labels=labels,
            references={role: ref.select(rows).at(labels, logp.shape[1]) for role, ref in self.references.items()},
            columns={name: column[rows] for name, column in self.columns.items()},
            progress=self.progress,
        )


def _check_shapes(
    labels: Tensor, positions: torch.Size, columns: Mapping[str, Tensor] | None, token_scale: Tensor | float
) -> None:
    """Shapes that merely flatten to the right length would pair tokens with other tokens' labels."""
    shaped = {"labels": labels, **(columns or {})}
    if isinstance(token_scale, Tensor) and token_scale.numel() > 1:
        shaped["token_scale"] = token_scale
    for name, tensor in shaped.items():
        if tensor.shape != positions:
            raise QTargetError(
                f"{name} has the shape {tuple(tensor.shape)}, the positions {tuple(positions)}; they must be the same"
            )


def _aligned(role: str, reference: Reference, positions: int) -> Reference:
    if not isinstance(reference, Reference):
        raise QTargetError(f"the {role} must be a qtarget.Reference, got {type(reference).__name__}")
    if len(reference) != positions:
        raise QTargetError(
            f"the {role} covers {len(reference)} positions, the labels {positions}; they must be the same"
        )
    return reference


@torch.no_grad()
def _score(
    logits: Tensor, tokens: _Tokens, rows: slice, design: Design, *, wants_gradient: bool
) -> tuple[TokenStatistics, Tensor | None]:
    """One chunk: what the design makes of it, and s·∂loss/∂logits [n, V] where that is wanted."""
    logp = torch.log_softmax(logits, dim=-1)
    view = tokens.view(logp, rows)
    if not torch.isfinite(view.label_logp).all():
        _raise_not_finite(logits, view.label_logp, rows.start)
    target = design(view)
    gradient = target.gradient(view)
    step = target.weight.abs().clamp_min(torch.finfo(gradient.dtype).tiny)
    statistics = TokenStatistics(
        loss=target.value(view),
        nll=-view.label_logp,
        reliance=target.label_mass,
        weight=target.weight,
        trust=target.trust(view),
        entropy=torch.special.entr(logp.exp()).sum(-1),
        gap=0.5 * torch.linalg.vector_norm(gradient, ord=1, dim=-1) / step,
        kl_prior=_drift(view),
    )
    return statistics, gradient.mul_(tokens.scale[rows, None]) if wants_gradient else None


def _drift(view: TokenView) -> Tensor:
    prior = view.references.get("prior")
    if prior is None or prior.reference.rows is None:
        return torch.full_like(view.label_logp, torch.nan)
    p = view.logp.exp()
    return torch.where(p > 0, p * (view.logp - prior.logp), 0.0).sum(-1)


def _raise_not_finite(logits: Tensor, label_logp: Tensor, offset: int) -> None:
    row = int((~torch.isfinite(label_logp)).nonzero()[0, 0])
    nan = torch.isnan(logits[row]).any()
    what = "NaN logits" if nan else "a label with probability 0 (a padded vocabulary row?)"
    raise QTargetError(
        f"{what} at supervised token {offset + row}: lower the learning rate, or check the model's weights"
    )


@dataclass(frozen=True)
class _HeadGradients:
    """Gradients of the hidden states and of the head, accumulated over chunks; None where not wanted."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @classmethod
    def zeros(cls, hidden: Tensor, head: Head) -> _HeadGradients:
        def buffer(tensor: Tensor | None) -> Tensor | None:
            if tensor is None or not tensor.requires_grad or not torch.is_grad_enabled():
                return None
            dtype = tensor.dtype if tensor.dtype == torch.float64 else torch.float32
            return torch.zeros(tensor.shape, dtype=dtype, device=tensor.device)

        return cls(buffer(hidden), buffer(head.weight), buffer(head.bias))

    @property
    def wanted(self) -> bool:
        return any(buffer is not None for buffer in (self.hidden, self.weight, self.bias))

    def add(self, rows: slice, chunk: Tensor, logits: Tensor, grad_logits: Tensor, *, head: Head) -> None:
        dtype = matmul_dtype(chunk)
        grad_product, grad_biased = head.product_gradient(grad_logits, logits)
        if self.bias is not None:
            self.bias.add_(grad_biased.sum(0))
        grad_product = grad_product.to(dtype)
        if self.hidden is not None:
            self.hidden[rows] = (grad_product @ head.weight.to(dtype)).to(self.hidden.dtype)
        if self.weight is not None:
            self.weight.add_(grad_product.T @ chunk.to(dtype))


class _Attach(torch.autograd.Function):
    """A scalar whose gradients were computed beforehand."""

    @staticmethod
    def forward(ctx, total, count, *tensors):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*tensors[count:])
        return total.clone()

    @staticmethod
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]
        gradients = [upstream * gradient for gradient in ctx.saved_tensors]
        return None, None, *gradients, *([None] * len(gradients))


def _output(
    pieces: list[TokenStatistics], tokens: _Tokens, graph: list[tuple[Tensor | None, Tensor | None]]
) -> LossOutput:
    names = [field.name for field in fields(TokenStatistics)]
    empty = tokens.scale.new_zeros(0, dtype=torch.float32)
    joined = {name: torch.cat([getattr(piece, name) for piece in pieces]) if pieces else empty for name in names}
    total = (joined["loss"] * tokens.scale).sum()
    wanted = [
        (tensor, gradient.to(tensor.dtype)) for tensor, gradient in graph if tensor is not None and gradient is not None
    ]
    if wanted:
        inputs, gradients = zip(*wanted, strict=True)
        total = _Attach.apply(total, len(inputs), *inputs, *gradients)  # type: ignore[no-untyped-call]
    return LossOutput(**joined, total=total)
