"""What a design may look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from qtarget.errors import QTargetError
from qtarget.math.reference import ReferenceView


@dataclass(frozen=True)
class TokenView:
    """n supervised tokens as a design sees them: detached, fp32 or better, over the true vocabulary.

    logp [n, V] log-probabilities of the policy; labels [n]; references by role ("prior", "teacher"); columns by name,
    each [n]; progress in [0, 1] of the training run.
    """

    logp: Tensor
    labels: Tensor
    references: Mapping[str, ReferenceView] = field(default_factory=dict)
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    progress: float = 0.0

    @cached_property
    def label_logp(self) -> Tensor:
        """log p(y) [n]."""
        return self.logp.gather(1, self.labels[:, None]).squeeze(1)

    def label_logp_of(self, source: str) -> Tensor:
        """log-probability [n] of the label under "policy" or a reference's role."""
        return self.label_logp if source == "policy" else self._reference(source).label_logp

    def logp_of(self, source: str) -> Tensor:
        """log-probabilities [n, V] under "policy" or a reference's role."""
        return self.logp if source == "policy" else self._reference(source).logp

    def _reference(self, role: str) -> ReferenceView:
        if role not in self.references:
            held = ", ".join(sorted(self.references)) or "none"
            raise QTargetError(f"this design needs a {role}; references given: {held}")
        return self.references[role]
