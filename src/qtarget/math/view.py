"""What a design reads of n tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from qtarget.errors import QTargetError
from qtarget.math.distribution import Distribution, lazy
from qtarget.math.schedule import Scalar, value_at


@dataclass(frozen=True)
class TokenView:
    """n supervised tokens as a design sees them: detached, fp32 or better, over the true vocabulary.

    logp [n, V] log-probabilities of the policy; labels [n]; references by role ("prior", "teacher", "old"); columns by
    name, each [n]; negatives [n, K] token ids (−100: none); scope_values: part → [n], what a part with a scope made
    of more tokens than these; progress in [0, 1] of the training run; has_zeros: whether logp may be −∞ anywhere.
    """

    logp: Tensor
    labels: Tensor
    references: Mapping[str, Distribution] = field(default_factory=dict)
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    negatives: Tensor | None = None
    scope_values: Mapping[object, Tensor] = field(default_factory=dict)
    progress: float = 0.0
    has_zeros: bool = True

    @lazy
    def policy(self) -> Distribution:
        logp = self.logp  # a closure over the view would make a cycle, and [n, V] would live until it is found
        return Distribution(self.labels, lambda: logp, has_zeros=self.has_zeros)

    @property
    def label_logp(self) -> Tensor:
        """log p(y) [n]."""
        return self.policy.label_logp

    def of(self, source: str) -> Distribution:
        """The policy's distribution, or a reference's by its role."""
        if source == "policy":
            return self.policy
        if source not in self.references:
            names = ", ".join(sorted(self.references)) or "none"
            raise QTargetError(f"this design needs a {source}; references given: {names}")
        return self.references[source]

    def column(self, name: str) -> Tensor:
        """Per-token data [n] of the batch, in the dtype of the probabilities."""
        if name not in self.columns:
            names = ", ".join(sorted(self.columns)) or "none"
            raise QTargetError(f"this design needs the data column {name!r}; columns given: {names}")
        return self.columns[name].to(self.logp.dtype)

    def scope_value(self, part: object) -> Tensor:
        """What `part.scope_value` made of the tokens in its scope, for these n."""
        if part not in self.scope_values:
            raise QTargetError(f"{part!r} looks beyond single tokens: call it through dense_loss or linear_loss")
        values = self.scope_values[part]
        return values.to(self.logp.dtype) if values.is_floating_point() else values

    statistic = scope_value  # its earlier name

    def at(self, value: Scalar) -> float:
        """A scalar field's value now: fields may follow training progress."""
        return value_at(value, self.progress)
