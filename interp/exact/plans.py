"""How two normal laws may be coupled: their cross-covariance Cov[x0, x1] in closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..arguments import real
from ..couplings import Coupling, from_config
from ..couplings.bridge import SchroedingerBridge
from ..couplings.exact import OptimalTransport
from ..couplings.independent import Independent
from ..errors import OptionError, Unsupported
from .covariances import Components


def transport_plan(cov0: Tensor, cov1: Tensor) -> Tensor:
    """Cov[x0, x1] of the optimal transport between N(m0, cov0) and N(m1, cov1), squared distance.

        x1 - m1 = T (x0 - m0),   T = C0^(-1/2) (C0^(1/2) C1 C0^(1/2))^(1/2) C0^(-1/2),   K = C0 T

    Args:
        cov0: (d, d), symmetric positive definite.
        cov1: the same.

    Raises:
        OptionError: other matrices.

    Source: Dowson, Landau 1982; Olkin, Pukelsheim 1982.
    """
    return schroedinger_plan(cov0, cov1, 0.0)


def schroedinger_plan(cov0: Tensor, cov1: Tensor, sigma: float) -> Tensor:
    """Cov[x0, x1] of the Schroedinger bridge of sigma dW between N(m0, cov0) and N(m1, cov1).

        K = C0^(1/2) (C0^(1/2) C1 C0^(1/2) + sigma^4 / 4)^(1/2) C0^(-1/2) - sigma^2 / 2

    The plan is entropic transport of |x0 - x1|^2 with regularisation 2 sigma^2, and the bridge's
    path has alpha = 1 - t, beta = t and gamma = sigma sqrt(t (1 - t)).

    Args:
        cov0: (d, d), symmetric positive definite.
        cov1: the same.
        sigma: the diffusion of the reference process, zero or more.

    Raises:
        OptionError: other matrices, or a sigma that is negative or not finite.

    Source: Bunne, Hsieh, Cuturi, Krause 2022 (2202.05722); Mallasto, Gerolin, Minh 2020
    (2006.03416); Janati, Muzellec, Peyre, Cuturi 2020 (2006.02572).
    """
    reach = real("sigma", sigma) ** 2 / 2
    C0, C1 = (torch.as_tensor(C, dtype=torch.float64) for C in (cov0, cov1))
    if C0.ndim != 2 or C0.shape[0] != C0.shape[1] or C0.shape != C1.shape:
        raise OptionError(
            f"the covariances have shapes {tuple(C0.shape)} and {tuple(C1.shape)}. Give two (d, d)."
        )
    for C in (C0, C1):
        if not (torch.allclose(C, C.mT, rtol=1e-6) and torch.linalg.eigvalsh(C).min() > 0):
            raise OptionError("a covariance is not symmetric positive definite. Give one that is.")
    eye = torch.eye(len(C0)).to(C0)
    root = _root(C0)
    # ((A + s^2)^(1/2) - s) as A / ((A + s^2)^(1/2) + s): nothing cancels where sigma is large.
    A = root @ C1 @ root
    inner: Tensor = torch.linalg.solve(_root((A + A.mT) / 2 + reach**2 * eye) + reach * eye, A)
    plan: Tensor = root @ torch.linalg.solve(root, inner, left=False)
    return plan


def _root(C: Tensor) -> Tensor:
    """The symmetric square root."""
    values, vectors = torch.linalg.eigh(C)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
    return root


def resolve(coupling: object) -> Tensor | float | None:
    """What a ``coupling`` means between laws: None for independent ends, the matrix Cov[x0, x1], or
    the sigma of a Schroedinger bridge, 0 for optimal transport.

    Raises:
        Unsupported: a coupling without a closed form.
        UnknownName, OptionError: a name or options that do not exist.
    """
    if coupling is None or isinstance(coupling, Tensor):
        return coupling
    if isinstance(coupling, (str, Mapping, Coupling)):
        made = from_config(coupling)
        if isinstance(made, Independent):
            return None
        if isinstance(made, SchroedingerBridge):
            return made.sigma
        if isinstance(made, OptimalTransport) and made.cost is None:
            return 0.0 if made.reg is None else math.sqrt(made.reg / 2)
    raise Unsupported(
        f"there is no closed form for the coupling {coupling!r}. Use independent, optimal_transport or "
        "schroedinger_bridge of `interp.couplings`, or the matrix Cov[x0, x1]."
    )


def cross_covariance(plan: Tensor | float, base: Components, target: Components) -> Tensor:
    """Cov[x0, x1] of two normal laws, from a matrix or from the sigma of a bridge.

    Raises:
        OptionError: a matrix of another shape, or one that makes the joint covariance indefinite.
    """
    C0, C1 = base.covs[0], target.covs[0].to(base.means.device)
    if not isinstance(plan, Tensor):
        return schroedinger_plan(C0, C1, plan)
    K = plan.to(device=C0.device, dtype=torch.float64)
    if K.shape != C0.shape or not K.isfinite().all():
        raise OptionError(
            f"the coupling has shape {tuple(K.shape)}. Give Cov[x0, x1], finite, {tuple(C0.shape)}."
        )
    joint = torch.cat([torch.cat([C0, K], 1), torch.cat([K.mT, C1], 1)])
    least = torch.linalg.eigvalsh(joint)[0].item()
    if least < -1e-9 * joint.diagonal().max().item():  # room for rounding where x1 = T x0
        raise OptionError(
            f"with this coupling the joint covariance of x0 and x1 has the eigenvalue {least:g}. "
            "Give Cov[x0, x1] with |Cov[u x0, v x1]| at most the product of the deviations."
        )
    return K
