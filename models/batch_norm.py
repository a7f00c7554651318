"""Batch norm over the batches of all workers, on any device: torch's SyncBatchNorm knows GPUs only.

Networks stay as they are: while `SynchronisedBatchNorm` is entered, what their norms call is replaced, so parameters
keep their names, and norms of other libraries that are built on the same function take part.
Shapes: B images, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from models.objective import Reduce


class SynchronisedBatchNorm(TorchFunctionMode):
    """Within it, norms in training mode take their statistics over all workers, who make the same calls.

    Values, gradients and running statistics are those of `nn.BatchNorm` on the parts of all workers put together, of
    whatever sizes; so a part may be one row. Gradients of scale and shift are those of this worker's rows, to be summed
    as all others. Each norm exchanges two C-vectors and a count forward and two C-vectors backward; the latter also
    when the block has been left. With one worker leave it out: torch's own norm is fused. Holds for this thread.
    """

    def __init__(self, reduce: Reduce) -> None:
        super().__init__()
        self._reduce = reduce

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Replaces `torch.nn.functional.batch_norm` in training, and nothing else."""
        kwargs = kwargs or {}
        if func is functional.batch_norm and kwargs["training"]:
            return self._batch_norm(*args, **kwargs)
        return func(*args, **kwargs)

    def _batch_norm(self, x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, **rest: Any) -> Tensor:
        batch = _moments(x, self._reduce)
        if running_mean is not None and running_var is not None:
            unbiased_C = batch.var_C * (batch.count_1 / (batch.count_1 - 1).clamp_min(1))
            running_mean.lerp_(batch.mean_C.to(running_mean.dtype), rest["momentum"])
            running_var.lerp_(unbiased_C.to(running_var.dtype), rest["momentum"])
        output: Tensor = _Normalise.apply(x, rest["weight"], rest["bias"], rest["eps"], batch)
        return output


class _Moments(NamedTuple):
    """Of each channel over all workers, at least float32; the variance is biased. `count_1` values make them up."""

    mean_C: Tensor
    var_C: Tensor
    count_1: Tensor
    reduce: Reduce


class _Normalise(torch.autograd.Function):
    """z = (x - mean) / deviation, times weight, plus bias: to torch's kernels a norm in evaluation mode."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_C: Tensor | None, bias_C: Tensor | None, eps: float, batch: _Moments
    ) -> Tensor:
        ctx.save_for_backward(x, weight_C)
        ctx.eps, ctx.batch = eps, batch
        return functional.batch_norm(x, batch.mean_C, batch.var_C, weight_C, bias_C, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """d x = slope (g - mean g - z mean(g z)); means are over all workers (Ioffe and Szegedy 2015, section 3).

        The kernel gives slope g, and this worker's sums of g and g z; the rest is linear in z, so a norm once more.
        """
        x, weight_C = ctx.saved_tensors
        batch: _Moments = ctx.batch
        kernel = torch.ops.aten.native_batch_norm_backward
        statistics = (batch.mean_C, batch.var_C, None, None, False, ctx.eps)
        grad_x, product_C, sum_C = kernel(grads[0], x, weight_C, *statistics, (True, True, True))
        mean_C, mean_product_C = (total / batch.count_1 for total in batch.reduce.sum(sum_C, product_C))
        slope_C = (batch.var_C + ctx.eps).rsqrt()
        if weight_C is not None:
            slope_C *= weight_C
        line = (-slope_C * mean_product_C, -slope_C * mean_C)
        grad_x += functional.batch_norm(x, batch.mean_C, batch.var_C, *line, False, 0.0, ctx.eps)
        return grad_x, None if weight_C is None else product_C, None if weight_C is None else sum_C, None, None


@torch.no_grad()
def _moments(x: Tensor, reduce: Reduce) -> _Moments:
    """Each worker's mean and variance are accurate by themselves; they are joined in float64, where second moments may
    be subtracted.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    unused_C = x.new_zeros(x.shape[1], dtype=dtype)  # running statistics: the result has their type
    mean_C, var_C = (each.double() for each in torch.batch_norm_update_stats(x, unused_C, unused_C.clone(), 0.0))
    rows = x.numel() / x.shape[1]
    own = (mean_C.new_full((1,), rows), rows * mean_C, rows * (var_C + mean_C.square()))
    count_1, sum_C, square_C = reduce.sum(*own)
    whole_C = sum_C / count_1
    whole_var_C = (square_C / count_1 - whole_C.square()).clamp_min(0)
    return _Moments(whole_C.to(dtype), whole_var_C.to(dtype), count_1.to(dtype), reduce)
