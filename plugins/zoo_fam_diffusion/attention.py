"""Attention modulation: native self-attention maps are blended into those of the target size.

    M~ = lambda U(M_n) + (1 - lambda) M,     out = M~ V                                  (eq. 5)

A map is a function of two cells, query and key, on the token grid; U enlarges both. It is linear,
U(M) = A M B^T, so that the product needs no map at the target size (eq. 7):

    U(M_n) V = A (M_n (B^T V)) = enlarge(attention(Q_n, K_n, pool(V)))

Tensors of heads are (B,N,L,D): batch, heads, tokens, channels; L = rows * columns of a grid.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate, scaled_dot_product_attention

from .frequency import Size

Kernel = Literal["bilinear", "nearest"]
LARGEST_MAP = 1 << 26
"""Most entries of an attention map at once, where no fused kernel avoids the map."""


# --- U: from the native to the target grid --------------------------------------------------------


def token_grid(tokens: int, latent: Size) -> Size:
    """(rows, columns) of ``tokens`` below a latent of (h, w): halved, rounded up, as often as
    needed.

    Raises ValueError if no halving has as many tokens.
    """
    rows, columns = latent
    while rows * columns > tokens:
        rows, columns = (rows + 1) // 2, (columns + 1) // 2
    if rows * columns != tokens:
        raise ValueError(f"{tokens} tokens are no halving of a {latent[0]} x {latent[1]} latent.")
    return rows, columns


@lru_cache(maxsize=64)
def interpolation(native: int, target: int, kernel: Kernel = "bilinear") -> Tensor:
    """A (target, native) in float64: how a row of cells is enlarged; each row sums to 1."""
    cells = torch.eye(native, dtype=torch.float64)[None]  # a batch of ``native`` channels
    if kernel == "nearest":
        return interpolate(cells, size=target, mode="nearest-exact")[0].T
    return interpolate(cells, size=target, mode="linear", align_corners=False)[0].T


def _both_axes(x: Tensor, grid: Size, rows: Tensor, columns: Tensor) -> Tensor:
    """x (...,L,D) on ``grid``, multiplied along both axes of the grid: (...,L',D)."""
    cells = x.unflatten(-2, grid)  # (...,h,w,D)
    wide = torch.einsum("vw,...hwd->...hvd", columns.to(x), cells)
    return torch.einsum("uh,...hvd->...uvd", rows.to(x), wide).flatten(-3, -2)


def enlarge(x: Tensor, native: Size, target: Size, kernel: Kernel = "bilinear") -> Tensor:
    """A x: tokens (...,L_n,D) of the native grid to (...,L,D) of the target grid."""
    sides = zip(native, target, strict=True)
    rows, columns = (interpolation(n, t, kernel) for n, t in sides)
    return _both_axes(x, native, rows, columns)


def pool(x: Tensor, native: Size, target: Size, kernel: Kernel = "bilinear") -> Tensor:
    """B^T x, the mean of the target cells that each native cell covers: (...,L,D) to (...,L_n,D).

    B is A with its columns divided by their sums (eq. 6).
    """
    weights = [interpolation(n, t, kernel) for n, t in zip(native, target, strict=True)]
    rows, columns = ((a / a.sum(0)).T for a in weights)
    return _both_axes(x, target, rows, columns)


def enlarged_map(m: Tensor, native: Size, target: Size, kernel: Kernel = "bilinear") -> Tensor:
    """U(M) = A M B^T in full: (...,L_n,L_n) to (...,L,L). For small grids and for checking."""
    queries = enlarge(m, native, target, kernel)  # (...,L,L_n)
    sums = enlarge(torch.eye(m.shape[-1]).to(m), native, target, kernel).sum(0)  # (L_n,)
    return enlarge((queries / sums).mT, native, target, kernel).mT


# --- attention ------------------------------------------------------------------------------------


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, in groups of queries, so that no map exceeds ``LARGEST_MAP``.

    Fused kernels have no map, but none exists for some devices and dtypes.
    """
    at_once = max(1, LARGEST_MAP // (q.shape[0] * q.shape[1] * k.shape[2]))
    if at_once >= q.shape[2]:
        return scaled_dot_product_attention(q, k, v)
    parts = [scaled_dot_product_attention(part, k, v) for part in q.split(at_once, dim=2)]
    return torch.cat(parts, dim=2)


def modulated_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_native: Tensor,
    k_native: Tensor,
    native: Size,
    target: Size,
    lam: float = 0.7,
    kernel: Kernel = "bilinear",
) -> Tensor:
    """Eq. 5 in the form of eq. 7: q, k, v (B,N,L,D) and native q, k (B,N,L_n,D) to (B,N,L,D).

    ``lam``: lambda in [0, 1]. 0 leaves the native maps out, 1 has nothing else.
    """
    ours = attend(q, k, v)
    pooled = pool(v, native, target, kernel)  # (B,N,L_n,D)
    theirs = enlarge(attend(q_native, k_native, pooled), native, target, kernel)
    return torch.lerp(ours, theirs, lam)
