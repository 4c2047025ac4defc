"""The same models in the libraries that ours is timed beside."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def drift_in_jax(layers: nn.Sequential) -> Callable[[object, object, object], object]:
    """A torch MLP of (x, t) with SiLU between its layers, as the drift(t, y, args) of diffrax.

    Raises:
        ImportError: no jax.
    """
    import jax
    import jax.numpy as jnp

    weights = [
        (jnp.asarray(m.weight.detach().numpy()), jnp.asarray(m.bias.detach().numpy()))
        for m in layers
        if isinstance(m, nn.Linear)
    ]

    def drift(t: object, y: object, args: object) -> object:
        h = jnp.concatenate([y, jnp.full((y.shape[0], 1), t, y.dtype)], axis=1)
        for i, (weight, bias) in enumerate(weights):
            h = h @ weight.T + bias
            h = jax.nn.silu(h) if i + 1 < len(weights) else h
        return h

    return drift
