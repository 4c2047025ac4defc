"""A model with its attention spoilt, for `guide` to move away from."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from ..arguments import real
from ..errors import OptionError, UnknownName
from ..terms.model import check_callable
from .wrapper import Wrapper

Model = Callable[..., Any]
KINDS = ("identity", "smoothed")


class Perturbed(Wrapper):
    """A model of the same view; see `perturbed`."""

    def __init__(
        self, model: Model, kind: str, layers: Collection[int] | None, width: float
    ) -> None:
        check_callable("model", model)
        if kind not in KINDS:
            raise UnknownName.of("kind of perturbation", kind, KINDS)
        if not (width == math.inf or real("width", width) > 0):
            raise OptionError(f"width is {width}. Give a positive number of tokens, or math.inf.")
        self.model, self.kind, self.width = model, kind, width
        self.layers = None if layers is None else frozenset(layers)

    def __call__(self, t: Tensor, x: Tensor, **cond: Any) -> Any:
        """The model's answer at (t, x) with its attention spoilt.

        Raises:
            OptionError: a model that attends nowhere, or not in one of the layers.
        """
        spoiling = _Spoiling(self)
        with spoiling:
            out = self.model(t, x, **cond)
        missing = sorted((self.layers or {0}) - set(range(spoiling.met)))
        if missing:
            raise OptionError(
                f"the model attends in {spoiling.met} layers, and layer {missing[0]} is none of them. "
                "Give layers= below that, and a network that attends by "
                "torch.nn.functional.scaled_dot_product_attention."
            )
        return out


class _Spoiling(TorchFunctionMode):
    """Counts the attentions of one call, and spoils those that are asked for."""

    def __init__(self, how: Perturbed) -> None:
        super().__init__()
        self.how, self.met = how, 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is not scaled_dot_product_attention:
            return func(*args, **given)
        layer, self.met = self.met, self.met + 1
        if self.how.layers is not None and layer not in self.how.layers:
            return func(*args, **given)
        names = ("query", "key", "value")
        q, k, v = (args[i] if i < len(args) else given.pop(name) for i, name in enumerate(names))
        if self.how.kind == "smoothed":
            return func(_smoothed(q, self.how.width), k, v, *args[3:], **given)
        if q.shape[-2] != k.shape[-2]:  # attention to something else, such as a text, is left alone
            return func(q, k, v, *args[3:], **given)
        return v.expand(*q.shape[:-1], v.shape[-1])


def perturbed(
    model: Model,
    kind: str = "identity",
    layers: Collection[int] | None = None,
    width: float = math.inf,
) -> Perturbed:
    """The model with its self-attention spoilt: ``guide(model, perturbed(model), 1 + s)``.

    "identity" lets every token attend to itself alone (perturbed-attention guidance: Ahn, Cho, Min, Jang,
    Kim, Kim, Park, Jin, Kim, 2403.17377); "smoothed" blurs the queries over the tokens by a Gaussian of
    ``width``, at infinity their mean (smoothed energy guidance: Hong, 2408.00760). The papers' scale s is
    ours less 1. Works with any network that attends by torch's ``scaled_dot_product_attention``, ours and
    diffusers'.

    Args:
        model: model(t, x, **cond).
        kind: "identity" or "smoothed".
        layers: which attentions, counted from 0 in the order in which a call meets them; None is all.
        width: of the blur, in tokens, over the square that they are laid out on.

    Raises:
        UnknownName: a kind that does not exist.
        OptionError: a width that is not positive; and when called, a model that does not attend in a
            layer, or tokens that are no square where the width is finite.
    """
    return Perturbed(model, kind, layers, width)


def _smoothed(q: Tensor, width: float) -> Tensor:
    """Queries (..., tokens, channels) blurred over their tokens."""
    if width == math.inf:
        return q.mean(-2, keepdim=True).expand_as(q)
    tokens = q.shape[-2]
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise OptionError(
            f"{tokens} tokens are no square to blur over. Take width=math.inf, or other layers."
        )
    at = torch.arange(side, dtype=q.dtype, device=q.device)
    kernel = torch.softmax(-((at[:, None] - at) ** 2) / (2 * width**2), 1)
    laid = q.reshape(*q.shape[:-2], side, side, q.shape[-1])
    return torch.einsum("ai,bj,...ijc->...abc", kernel, kernel, laid).flatten(-3, -2)
