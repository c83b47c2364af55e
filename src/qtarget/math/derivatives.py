"""A scalar whose gradients were computed beforehand, and what can't be asked of it: any derivative but the first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from qtarget.errors import QTargetError

WAY_ON = "for those, write the loss in plain PyTorch, log-probabilities and all: what qtarget.induced_target takes"


def check_first_order(*inputs: object) -> None:
    """Raise QTargetError where an input is in forward mode or under a transform of torch.func.

    Gradients are formed in the forward from detached numbers: a tangent would be lost there, and come out as 0.
    """
    if torch.compiler.is_compiling():
        return
    for tensor in inputs:
        if not isinstance(tensor, Tensor):
            continue
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            raise QTargetError(
                "this loss can't be transformed by torch.func (grad, vmap, jvp, jacfwd, hessian): its gradient is "
                f"formed in the forward. Call out.total.backward() or torch.autograd.grad; {WAY_ON}"
            )
        if forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None:  # type: ignore[no-untyped-call]
            raise QTargetError(
                "this loss has no forward-mode derivative (jvp): its gradient is formed in the forward. Call "
                f"out.total.backward() or torch.autograd.grad; {WAY_ON}"
            )


class _Attach(torch.autograd.Function):
    """total [] as it is; its gradients of `count` tensors are those given."""

    @staticmethod
    def forward(ctx, total, count, *tensors):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*tensors[count:])
        ctx.dtypes = [tensor.dtype for tensor in tensors[:count]]
        return total.clone()

    @staticmethod
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]
        if torch.is_grad_enabled():  # create_graph=True
            raise QTargetError(
                "this loss has first derivatives only, and create_graph=True asks for more: a second derivative would "
                f"come out as 0. Leave create_graph out; {WAY_ON}"
            )
        is_one = upstream.device.type == "cpu" and float(upstream) == 1.0  # elsewhere looking would wait for the device
        gradients = [gradient if is_one else upstream * gradient for gradient in ctx.saved_tensors]
        cast = [gradient.to(dtype) for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)]
        return upstream, None, *cast, *([None] * len(gradients))


def attach(total: Tensor, gradients: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """`total` [], with (tensor, ∂total/∂tensor) as its graph.

    A gradient is kept in its tensor's dtype, but in float32 for float16: it may have a range only once what comes
    from above, such as a loss scale or 1/N, has been multiplied in.
    """
    inputs = [tensor for tensor, _ in gradients]
    cast = [gradient if tensor.dtype == torch.float16 else gradient.to(tensor.dtype) for tensor, gradient in gradients]
    result: Tensor = _Attach.apply(total, len(inputs), *inputs, *cast)  # type: ignore[no-untyped-call]
    return result
