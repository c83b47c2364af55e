"""Whose probability a part reads: wherever a rule uses one, its source is a field."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from qtarget.math.tokens import ROLES
from qtarget.math.view import TokenView
from qtarget.settings import Checked, Choice

REFERENCES = ROLES
SOURCES = ("policy", *REFERENCES)
ANY_SOURCE = Choice(SOURCES)
ANY_REFERENCE = Choice(REFERENCES)


class ReadsLabel(Checked):
    """A part that reads scalars of the label under `source`."""

    source: str

    @property
    def detail(self) -> str:
        """How much of a reference it reads, see math.reference.DETAILS."""
        return "label"

    @property
    def needs(self) -> Mapping[str, str]:
        return {} if self.source == "policy" else {self.source: self.detail}


class ReadsDistribution(ReadsLabel):
    """A part that reads the whole distribution of `source`, a reference."""

    @property
    def detail(self) -> str:
        return "topk"


class IsScopeValue:
    """A part whose number per token is its scope value, see `qtarget.math.scope_values`."""

    def __call__(self, view: TokenView) -> Tensor:
        return view.scope_value(self)


def shown(source: str) -> str:
    """p(y) in words, where it is not the policy's."""
    return "p(y)" if source == "policy" else f"p_{source}(y)"
