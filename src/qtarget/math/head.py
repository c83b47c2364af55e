"""The output layer of a language model: hidden states → log-probabilities over the true vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


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

    def cast(self, dtype: torch.dtype) -> Head:
        """The same head with its weight in `dtype`, once for many products; detached."""
        return replace(self, weight=self.weight.detach().to(dtype))

    def logits(self, hidden: Tensor, dtype: torch.dtype) -> Tensor:
        """[n, D] → logits [n, V]: the product in `dtype`, everything after it in fp32 (fp64 stays fp64)."""
        z = product(hidden.to(dtype), self.weight.to(dtype))
        z = z if z.dtype == torch.float64 else z.float()
        if self.bias is not None:
            z = z + self.bias
        if self.scale != 1.0:
            z = z * self.scale
        if self.softcap is not None:
            z = self.softcap * torch.tanh(z / self.softcap)
        if self.true_vocab is not None:
            z[:, self.true_vocab :] = -torch.inf
        return z

    def product_gradient(self, grad_logits: Tensor, logits: Tensor) -> Tensor:
        """∂L/∂z [n, V] → ∂L/∂(h Wᵀ + bias) [n, V]; padded rows arrive with zero gradient."""
        if self.softcap is not None:
            slope = 1 - (logits / self.softcap).square()
            grad_logits = torch.where(torch.isfinite(logits), grad_logits * slope, 0.0)
        return grad_logits if self.scale == 1.0 else grad_logits * self.scale


def product(left: Tensor, right: Tensor) -> Tensor:
    """left rightᵀ: [n, K], [m, K] → [n, m]. In fp32 on a CPU by oneDNN, which keeps no graph.

    What PyTorch takes for fp32 products (MKL) runs at half of oneDNN's speed on processors of another maker.
    """
    graph = torch.is_grad_enabled() and (left.requires_grad or right.requires_grad)
    if graph or left.dtype != torch.float32 or left.device.type != "cpu" or not ONEDNN:
        return left @ right.T
    result: Tensor = _onednn(left, right)
    return result


@torch.library.custom_op("qtarget::onednn_product", mutates_args=())
def _onednn(left: Tensor, right: Tensor) -> Tensor:
    """An operator of its own, so that the compiler leaves it be: of oneDNN's it takes constant weights only."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    return result


@_onednn.register_fake
def _(left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty(left.shape[0], right.shape[0])


def matmul_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype matrix products run in here: autocast's where it is on, the tensor's own otherwise.

    float32 for float16, whose range ends at 6e-8: (p − Q)/N of most of a vocabulary would be 0.
    """
    device = tensor.device.type
    autocast = torch.is_autocast_enabled(device) and tensor.dtype != torch.float64
    dtype = torch.get_autocast_dtype(device) if autocast else tensor.dtype
    return torch.float32 if dtype == torch.float16 else dtype
