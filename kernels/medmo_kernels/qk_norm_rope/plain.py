"""The norm and rotation of one tensor, its gradients, and the way into a cache, in torch's ops; serves the CPU."""

import torch
from torch import Tensor


def _wide(x: Tensor, *others: Tensor) -> list[Tensor]:
    """Return all in float64 if `x` is, in fp32 otherwise."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return [t.to(dtype) for t in (x, *others)]


def _rstd(x: Tensor, eps: float) -> Tensor:
    """Return 1 / sqrt(mean of squares + eps) of each head; a norm is torch's only one-pass sum of squares."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """Rotate with tables that hold the weight already, then divide by the root mean square: five passes."""
    x_THD, w_D, cos_TC, sin_TC = _wide(x, weight, cos, sin)
    (w1, w2), (x1, x2) = w_D.chunk(2), x_THD.chunk(2, dim=-1)
    cos_T1C, sin_T1C = cos_TC.unsqueeze(1), sin_TC.unsqueeze(1)
    out_THD = torch.empty_like(x_THD, memory_format=torch.contiguous_format)
    out1, out2 = out_THD.chunk(2, dim=-1)
    torch.mul(x1, cos_T1C * w1, out=out1).addcmul_(x2, sin_T1C * w2, value=-1.0)
    torch.mul(x2, cos_T1C * w2, out=out2).addcmul_(x1, sin_T1C * w1)
    return out_THD.mul_(_rstd(x_THD, eps)).to(x.dtype)


def norm_rope_backward(
    grad: Tensor, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float, weights: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradients of one tensor and of its weight.

    With n = x * rstd and dy the gradient rotated back: dw = sum of dy * n over tokens and heads, and
    dx = rstd * (dy * w - n * mean(dy * w * n)). Both sums are products with the one tensor dy * x; that over tokens and
    heads goes token by token first, because one running fp32 sum of all rows loses two digits.
    """
    x_THD, g_THD, w_D, cos_TC, sin_TC = _wide(x, grad, weight, cos, sin)
    (g1, g2), (cos_T1C, sin_T1C) = g_THD.chunk(2, dim=-1), (cos_TC.unsqueeze(1), sin_TC.unsqueeze(1))
    dy_THD = torch.empty_like(x_THD, memory_format=torch.contiguous_format)
    dy1, dy2 = dy_THD.chunk(2, dim=-1)
    torch.mul(g1, cos_T1C, out=dy1).addcmul_(g2, sin_T1C)
    torch.mul(g2, cos_T1C, out=dy2).addcmul_(g1, sin_T1C, value=-1.0)
    rstd = _rstd(x_THD, eps)
    products_THD = dy_THD * x_THD
    dw_D = (rstd.transpose(1, 2) @ products_THD).sum((0, 1)) if weights else w_D.new_empty(0)
    slope = (products_THD @ w_D).view_as(rstd).mul_(rstd.pow(3)).div_(-x.shape[-1])
    return dy_THD.mul_(w_D).mul_(rstd).addcmul_(x_THD, slope).to(x.dtype), dw_D


def keep_tokens(cache: Tensor, tokens: Tensor, columns: Tensor) -> None:
    """Write one token of each row, (B, K, D), into its column of a (B, K, S, D) cache, where there is such a column."""
    rows, size = cache.shape[0], cache.shape[2]
    if columns.device.type == "cpu":
        places = columns.tolist()
        if places and 0 <= places[0] < size and places.count(places[0]) == rows:
            cache[:, :, places[0]] = tokens
            return
    if not size:
        return
    row, column = torch.arange(rows, device=cache.device), columns.long().clamp(0, size - 1)
    kept = torch.where((column == columns).view(-1, 1, 1), tokens, cache[row, :, column])
    cache[row, :, column] = kept
