"""Attention as all networks here have it."""

from __future__ import annotations

import math

from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import scaled_dot_product_attention


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(c)) v over tokens; each of shape (..., tokens, c).

    By torch's own function, so that its kernels serve and a wrapper can find it; written out in forward
    mode, which those kernels do not have.
    """
    if forward_ad.unpack_dual(q).tangent is None:  # type: ignore[no-untyped-call]
        return scaled_dot_product_attention(q, k, v)
    weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
    return weights @ v
