"""The output layer of a language model: hidden states → log-probabilities over the true vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qtarget.math.products import product


@dataclass(frozen=True)
class Head:
    """z = softcap·tanh(scale·(h Wᵀ + bias) / softcap), with rows from `true_vocab` on at −∞.

    weight [V, D]; bias [V] or None; softcap None = no cap; true_vocab None = all V rows are real tokens (models pad
    their vocabulary to a round number, and a padded row must not receive probability). The order is that of
    transformers: the output layer with its bias, then the multiplier, then the cap.
    """

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0
    true_vocab: int | None = None

    @property
    def is_padded(self) -> bool:
        """Whether some rows are no real tokens."""
        return self.true_vocab is not None and self.true_vocab < len(self.weight)

    def cast(self, dtype: torch.dtype) -> Head:
        """The same head with its weight in `dtype`, once for many products; detached."""
        return replace(self, weight=self.weight.detach().to(dtype))

    def logits(self, hidden: Tensor, dtype: torch.dtype) -> Tensor:
        """[n, D] → logits [n, V]: the product in `dtype`, everything after it in fp32 (fp64 stays fp64)."""
        return self.finished(self.products(hidden, dtype))

    def products(self, hidden: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """[n, D] → h Wᵀ [n, V] in `dtype`, in `out` where that may be."""
        return product(hidden.to(dtype), self.weight.to(dtype), out)

    def finished(self, products: Tensor) -> Tensor:
        """h Wᵀ [n, V] → logits [n, V] in fp32 or fp64; `products` stay as they are."""
        z = products if products.dtype == torch.float64 else products.float()
        if self.bias is not None:
            z = z + self.bias
        if self.scale != 1.0:
            z = z * self.scale
        if self.softcap is not None:
            z = self.softcap * torch.tanh(z / self.softcap)
        if self.true_vocab is not None:
            padding = z.shape[1] - self.true_vocab
            z = torch.nn.functional.pad(z[:, : self.true_vocab], (0, padding), value=-torch.inf)
        return z

    def product_gradient(self, grad_logits: Tensor, logits: Tensor) -> Tensor:
        """∂L/∂z [n, V] → ∂L/∂(h Wᵀ + bias) [n, V]; padded rows arrive with zero gradient."""
        if self.softcap is not None:
            slope = 1 - (logits / self.softcap).square()
            grad_logits = torch.where(torch.isfinite(logits), grad_logits * slope, 0.0)
        return grad_logits if self.scale == 1.0 else grad_logits * self.scale


def matmul_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype matrix products run in here: autocast's where it is on, the tensor's own otherwise.

    float32 for float16, whose range ends at 6e-8: (p − Q)/N of most of a vocabulary would be 0.
    """
    device = tensor.device.type
    autocast = torch.is_autocast_enabled(device) and tensor.dtype != torch.float64
    dtype = torch.get_autocast_dtype(device) if autocast else tensor.dtype
    return torch.float32 if dtype == torch.float16 else dtype
