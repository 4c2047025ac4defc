"""Normal components and the covariances that pairs of them share: eigenvalues where one basis serves
both ends of a path, matrices where none does.
"""

from __future__ import annotations

import functools
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


class Share(NamedTuple):
    """``left`` C ``right``: of two coefficients of a path, and their product.

    The product is apart since it may be finite where a factor is not, such as alpha alpha'.
    Coefficients are numbers, (n,) for a time a row, or (1 or n, d) where each element has its own;
    then left and right scale rows and columns of C. A ``left`` of None is 1.
    """

    left: Tensor | None
    right: Tensor
    product: Tensor


class Shares(NamedTuple):
    """What a covariance is made of: so much of 1, of C0, of C1, of K and of K^T."""

    identity: Tensor | None = None
    zeroth: Share | None = None
    first: Share | None = None
    cross: Share | None = None
    crossed: Share | None = None


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
        crossed = None if self.cross is None else self.cross.mT
        matrices = (self.zeroth, self.first, self.cross, crossed)
        pairs = zip(shares[1:], matrices, strict=True)
        terms = [_scaled(s, C, self.dense) for s, C in pairs if s is not None and C is not None]
        if shares.identity is not None:
            terms.append(self._diagonal(shares.identity))
        return functools.reduce(torch.add, terms)

    def _diagonal(self, c: Tensor) -> Tensor:
        """C times the identity."""
        if c.ndim == 2:
            return (torch.diag_embed(c) if self.dense else c)[:, None]
        if not self.dense:
            return column(c, 2)
        return column(c, 3) * torch.eye(self.first.shape[-1]).to(self.first)

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


def _scaled(share: Share, C: Tensor, dense: bool) -> Tensor:
    """``left`` C ``right`` for C (P, d[, d])."""
    if share.product.ndim < 2:
        return column(share.product, C.ndim) * C
    if not dense:
        return share.product[:, None] * C
    full = C * share.right[:, None, None, :]
    if share.left is not None:
        full = share.left[:, None, :, None] * full
    diagonal = share.product[:, None] * C.diagonal(dim1=-2, dim2=-1)
    return torch.diagonal_scatter(full, diagonal, dim1=-2, dim2=-1)


def column(c: Tensor, axes: int) -> Tensor:
    """(n,) as (n, 1, ...) with ``axes`` further axes, (n, d) as (n, 1, d); 0-d as it is."""
    if c.ndim == 2:
        return c[:, None]
    return c.reshape(-1, *(1,) * axes) if c.ndim else c


def symmetric(C: Tensor) -> Tensor:
    """(C + C^T) / 2."""
    return (C + C.mT) / 2


def rotated(parts: Components, V: Tensor) -> Components:
    """The components in the coordinates V x, V (d, d) orthonormal."""
    means = parts.means @ V.mT
    if parts.isotropic:
        return Components(parts.weights, means, parts.spectrum, None)
    own = torch.eye(V.shape[0]).to(V) if parts.basis is None else parts.basis
    return Components(parts.weights, means, parts.spectrum, (V @ own).expand(len(means), -1, -1))


def pair(zeroth: Tensor, first: Tensor, n0: int, n1: int) -> tuple[Tensor, Tensor]:
    """Both (K, ...) over the n0 n1 pairs of components, the base's index first."""
    return zeroth.repeat_interleave(n1, 0), first.repeat(n0, *(1,) * (first.ndim - 1))


def of_one(target: Components, on_axes: bool) -> Covariances:
    """Those of the target beside the base N(0, 1)."""
    if target.isotropic:
        return Covariances(None, target.spectrum, None)
    if on_axes and target.basis is not None:
        return Covariances(None, target.covs, None, dense=True)
    return Covariances(None, target.spectrum, target.basis)


def of_pairs(
    base: Components, target: Components, cross: Tensor | None, on_axes: bool
) -> Covariances:
    """Those of all pairs, eigenvalues where one basis serves both ends, else matrices.

    With ``on_axes``, for a path whose coefficients differ between the axes, that basis is the axes.
    """
    sizes = len(base.weights), len(target.weights)
    bases = [c.basis for c in (base, target) if not c.isotropic and c.basis is not None]
    axes = [c for c in (base, target) if not c.isotropic and c.basis is None]
    if cross is not None or len(bases) > 1 or (bases and (axes or on_axes)):
        own = None if cross is None else cross[None]
        return Covariances(*pair(base.covs, target.covs, *sizes), None, dense=True, cross=own)
    basis = None
    if bases and bases[0] is target.basis:
        basis = target.basis.repeat(sizes[0], 1, 1)
    elif bases:
        basis = bases[0].repeat_interleave(sizes[1], 0)
    return Covariances(*pair(base.spectrum, target.spectrum, *sizes), basis=basis)
