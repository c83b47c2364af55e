"""Residual π̃: where the mass goes that is not on the label.

Each part maps a TokenView to unnormalised log-probabilities [n, V], or to None for the policy itself. The loss
normalises. Rows of padded vocabulary are −∞ under the policy and must be −∞ under a reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qtarget.math.schedule import Scalar, Scheduled, value_at, written
from qtarget.math.view import TokenView
from qtarget.settings import Checked, setting


@dataclass(frozen=True)
class Self:
    """π̃ = p: the rest of the mass stays where it is, so the design is a token weight γ on plain SFT."""

    def __call__(self, view: TokenView) -> None:
        return None

    def __str__(self) -> str:
        return "self"


@dataclass(frozen=True)
class Uniform:
    """π̃ = 1/V over the true vocabulary (label smoothing)."""

    def __call__(self, view: TokenView) -> Tensor:
        return torch.zeros_like(view.logp).masked_fill_(torch.isneginf(view.logp), -torch.inf)

    def __str__(self) -> str:
        return "uniform"


@dataclass(frozen=True)
class Prior:
    """π̃ = π_0: the model training started from (KL(π_0‖p) regularisation, ASFT, GIFT)."""

    needs: ClassVar[Mapping[str, str]] = {"prior": "topk"}
    is_linear: ClassVar[bool] = True

    def __call__(self, view: TokenView) -> Tensor:
        return view.of("prior").logp

    def __str__(self) -> str:
        return "prior"


@dataclass(frozen=True)
class Teacher:
    """π̃ = π_T: forward-KL distillation (Hinton et al., arXiv 1503.02531)."""

    needs: ClassVar[Mapping[str, str]] = {"teacher": "topk"}
    is_linear: ClassVar[bool] = True

    def __call__(self, view: TokenView) -> Tensor:
        return view.of("teacher").logp

    def __str__(self) -> str:
        return "teacher"


@dataclass(frozen=True)
class Guided(Checked):
    """π̃ ∝ p^{1−η}·π_T^η, η in [0, 1]: from the policy itself (0) to the teacher (1) (Target-SFT, arXiv 2606.11189)."""

    eta: Scalar = setting(0.5, Scheduled(0, 1), "share of the teacher: 0 the policy itself, 1 the teacher")

    @property
    def needs(self) -> Mapping[str, str]:
        return {"teacher": "topk"} if self.eta != 0 else {}

    @property
    def is_linear(self) -> bool:
        return self.eta == 1

    def __call__(self, view: TokenView) -> Tensor:
        eta = view.at(self.eta)
        # 0·(−∞) is NaN: the ends are spelled out.
        if eta == 0:
            return view.logp
        if eta == 1:
            return view.of("teacher").logp
        return (1 - eta) * view.logp + eta * view.of("teacher").logp  # not alpha=eta, which a compiled add keeps

    def __str__(self) -> str:
        if isinstance(self.eta, str):
            return f"p^(1−η)·teacher^η, η={written(self.eta)}"
        return f"p^{1 - self.eta:g}·teacher^{self.eta:g}"


@dataclass(frozen=True)
class Sharpened(Checked):
    """π̃ ∝ p^{1/β}, β > 0: the policy at temperature β (GEM's rivals, arXiv 2408.16673; β=1 is the policy itself)."""

    beta: Scalar = setting(0.7, Scheduled(1e-2), "temperature of the policy; 1 leaves it as it is")

    def __call__(self, view: TokenView) -> Tensor:
        return view.logp / view.at(self.beta)

    def __str__(self) -> str:
        return f"p^(1/{written(self.beta)})"


@dataclass(frozen=True)
class Pool(Checked):
    """π̃ ∝ p^policy·π_0^prior·π_T^teacher: a log-linear pool with exponents of any sign.

    (1 − η, 0, η) is Target-SFT's residual (arXiv 2606.11189), past the teacher for η > 1; (1 − η, η, 0) has the prior
    in the teacher's place. (0, 1 − λ, λ) with λ > 1 is reward extrapolation (G-OPD, arXiv 2602.12125). Exponents that
    add up to 1/T are a pool at temperature T; three zeros are uniform.
    """

    policy: Scalar = setting(0.25, Scheduled(-100, 100), "exponent of p")
    prior: Scalar = setting(0.25, Scheduled(-100, 100), "exponent of the prior's π_0; 0: no prior is needed")
    teacher: Scalar = setting(0.5, Scheduled(-100, 100), "exponent of the teacher's π_T; 0: no teacher is needed")

    @property
    def needs(self) -> Mapping[str, str]:
        return {role: "topk" for role in ("prior", "teacher") if getattr(self, role) != 0}

    @property
    def is_linear(self) -> bool:
        """One reference alone, as it is."""
        return self.policy == 0 and {self.prior, self.teacher} == {0, 1}

    @property
    def wants_full_support(self) -> bool:
        """Below 0 an exponent makes much of what has no probability."""
        ends = [value_at(value, end) for value in (self.prior, self.teacher) for end in (0, 1)]
        return min(ends) < 0

    def __call__(self, view: TokenView) -> Tensor:
        total = torch.zeros_like(view.logp)
        for source in ("policy", "prior", "teacher"):
            exponent = view.at(getattr(self, source))
            if exponent:  # 0·(−∞) is NaN
                total = total + exponent * view.of(source).logp
        return total.masked_fill(torch.isneginf(view.logp), -torch.inf)

    def __str__(self) -> str:
        parts = (("p", self.policy), ("prior", self.prior), ("teacher", self.teacher))
        return "·".join(f"{name}^{written(exponent)}" for name, exponent in parts if exponent != 0) or "uniform"
