"""Normal components and the covariances that pairs of them share: eigenvalues where one basis serves
both ends of a path, matrices where none does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Components:
    """K normals in d dimensions, float64: weights (K,), means (K, d), covariances by spectrum.

    ``spectrum`` (K, d) holds the eigenvalues and ``basis`` (K, d, d) the eigenvectors in columns;
    None where these are the axes.
    """

    weights: Tensor
    means: Tensor
    spectrum: Tensor
    basis: Tensor | None

    @property
    def covs(self) -> Tensor:
        """The covariances as matrices, (K, d, d)."""
        if self.basis is None:
            return torch.diag_embed(self.spectrum)
        return symmetric((self.basis * self.spectrum[:, None, :]) @ self.basis.mT)

    @property
    def isotropic(self) -> bool:
        """Whether every component is."""
        return bool((self.spectrum == self.spectrum[:, :1]).all())


class Shares(NamedTuple):
    """What a covariance is made of: so much of 1, of C0, of C1, of K and of K^T."""

    identity: Tensor
    zeroth: Tensor
    first: Tensor
    cross: Tensor
    crossed: Tensor


@dataclass(frozen=True)
class Covariances:
    """C0, C1 and K of the pairs: eigenvalues (P, d) in a ``basis`` they share, else matrices.

    C0 is None where it is 1 and so belongs to the identity's share, K is None where it is 0. Local
    coordinates are those of the basis.
    """

    zeroth: Tensor | None
    first: Tensor
    basis: Tensor | None
    dense: bool = False
    cross: Tensor | None = None

    def combine(self, shares: Shares) -> Tensor:
        """The sum, (P, d[, d]), or (n, P, d[, d]) for shares (n,)."""
        axes = self.first.ndim
        one = torch.eye(self.first.shape[-1]).to(self.first) if self.dense else 1.0
        total = column(shares.first, axes) * self.first + column(shares.identity, axes) * one
        if self.zeroth is not None:
            total = total + column(shares.zeroth, axes) * self.zeroth
        if self.cross is not None:
            total = total + column(shares.cross, axes) * self.cross
            total = total + column(shares.crossed, axes) * self.cross.mT
        return total

    def enter(self, v: Tensor) -> Tensor:
        """Vectors (n, P, d) in local coordinates."""
        return v if self.basis is None else torch.einsum("kde,nkd->nke", self.basis, v)

    def leave(self, v: Tensor) -> Tensor:
        """Local coordinates as vectors (n, P, d)."""
        return v if self.basis is None else torch.einsum("kde,nke->nkd", self.basis, v)

    def matrices(self, C: Tensor) -> Tensor:
        """A combination in local coordinates as matrices, (..., P, d, d)."""
        if self.dense:
            return C
        return (
            torch.diag_embed(C)
            if self.basis is None
            else self.basis * C[..., None, :] @ self.basis.mT
        )

    def solve(self, S: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """S^-1 r (n, P, d) and log det S, in local coordinates."""
        if not self.dense:
            return r / S, S.log().sum(-1)
        root = torch.linalg.cholesky(S)
        log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return self.apply(torch.cholesky_inverse(root), r), log_det

    def apply(self, S: Tensor, y: Tensor) -> Tensor:
        """S y (n, P, d), in local coordinates."""
        if not self.dense:
            return S * y
        return torch.einsum("kde,nke->nkd" if S.ndim == 3 else "nkde,nke->nkd", S, y)


def column(c: Tensor, axes: int) -> Tensor:
    """(n,) as (n, 1, ...) with ``axes`` further axes; 0-d as it is."""
    return c.reshape(-1, *(1,) * axes) if c.ndim else c


def symmetric(C: Tensor) -> Tensor:
    """(C + C^T) / 2."""
    return (C + C.mT) / 2


def pair(zeroth: Tensor, first: Tensor, n0: int, n1: int) -> tuple[Tensor, Tensor]:
    """Both (K, ...) over the n0 n1 pairs of components, the base's index first."""
    return zeroth.repeat_interleave(n1, 0), first.repeat(n0, *(1,) * (first.ndim - 1))


def of_pairs(
    base: Components, target: Components, n0: int, n1: int, cross: Tensor | None
) -> Covariances:
    """Eigenvalues where one basis serves both ends, matrices where none does."""
    isotropic = base.isotropic, target.isotropic
    shared = any(isotropic) or base.basis is target.basis is None
    if cross is not None or not shared:
        own = None if cross is None else cross[None]
        return Covariances(*pair(base.covs, target.covs, n0, n1), None, dense=True, cross=own)
    basis = None
    if target.basis is not None and isotropic[0]:
        basis = target.basis.repeat(n0, 1, 1)
    elif base.basis is not None and isotropic[1]:
        basis = base.basis.repeat_interleave(n1, 0)
    return Covariances(*pair(base.spectrum, target.spectrum, n0, n1), basis=basis)
