"""Kernels: a user's own field in C's calling convention, and single steps of samplers in place."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from os import PathLike, fspath
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..errors import FieldError, OptionError
from . import engine
from .compiled import Compiled
from .field import NativeField, NativeModel, Reads


class Kernel(NativeModel):
    """A field written in any language that can export a C function; `solve` calls it without Python.

    The capsule, named "interp.kernel", points to a table that stays where it is for as long as the
    capsule lives:

        struct interp_kernel {
            uint32_t version;     // 1
            uint32_t bytes;       // of a number: 4 or 8
            size_t row;           // numbers in a row, 0 for any
            void *state;          // handed to every call
            int32_t (*call)(void *state, double t, size_t rows, size_t row, const void *x, void *out);
        };

    `call` writes the slope at t and x, rows * row numbers, into out, and returns 0 where that went
    well. It is called without the interpreter lock, by one thread at a time.

    Args:
        capsule: the capsule.
        debug: whether every call writes between canaries: a kernel that writes outside its result
            or into x is then a `FieldError`, and no damage is done by a near miss; what it leaves
            unwritten is NaN, and the run ends as one whose field is not finite.

    Raises:
        OptionError: what is no such capsule, or one of another version.
    """

    def __init__(self, capsule: object, *, debug: bool = False) -> None:
        try:
            self._kernel = engine.UserKernel(capsule, debug)
        except (TypeError, ValueError) as error:
            raise OptionError(
                f"this is {error}. Give a capsule as `Kernel` describes it."
            ) from error
        size, row = self._kernel.layout
        self.dtype = torch.float32 if size == 4 else torch.float64
        self.row = row or None

    @classmethod
    def load(
        cls, library: str | PathLike[str], symbol: str = "interp_kernel", **options: Any
    ) -> Kernel:
        """The kernel of a shared library that exports a function ``symbol`` giving the table's address.

        Raises:
            OptionError: a library or symbol that is not there.
        """
        try:
            function = getattr(ctypes.CDLL(fspath(library)), symbol)
        except (OSError, AttributeError) as error:
            raise OptionError(f"{fspath(library)!r} has no kernel {symbol!r} ({error}).") from error
        function.restype = ctypes.c_void_p
        make = ctypes.pythonapi.PyCapsule_New
        make.restype, make.argtypes = (
            ctypes.py_object,
            [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p],
        )
        address = function()
        if not address:
            raise OptionError(f"{symbol} of {fspath(library)!r} gave no table.")
        # A library stays loaded, and the name of a capsule has to stay where it is.
        return cls(make(address, _NAME, None), **options)

    def __call__(self, t: Tensor, x: Tensor, **cond: Any) -> Tensor:
        """The field at t, one for all rows, and x.

        Raises:
            FieldError: x of another dtype or length, or an error of the kernel's own.
        """
        self._check(x, cond)
        if t.numel() != 1:
            raise FieldError("a kernel takes one t for all rows. Give a 0-d t.")
        out = torch.empty(x.shape, dtype=x.dtype)
        self._kernel.call(out, float(t), x.detach().resolve_neg().contiguous())
        return out

    def native(
        self, x: Tensor, time: torch.dtype, cond: Mapping[str, Any], reads: Reads | None,
        per_row: bool = False,
    ) -> NativeField | None:  # fmt: skip
        """Itself; each row is a call of its own where it has a time of its own."""
        self._check(x, cond)
        return NativeField(self._kernel, [], [], None, reads)

    def _check(self, x: Tensor, cond: Mapping[str, Any]) -> None:
        if cond:
            raise FieldError(
                f"a kernel takes no conditions, and got {', '.join(cond)}. Put them into its state, "
                "or give a Python field."
            )
        if x.dtype != self.dtype or x.device.type != "cpu" or not x.ndim:
            raise FieldError(
                f"the kernel takes rows of {self.dtype} on the cpu, and x is {tuple(x.shape)} of {x.dtype} "
                f"on {x.device}. Convert x."
            )
        if self.row is not None and x[0].numel() != self.row:
            raise FieldError(
                f"the kernel takes rows of {self.row} numbers and x has rows of {x[0].numel()}. Give such "
                "an x, or a kernel whose table says row = 0, any."
            )


_NAME = b"interp.kernel"


def ddpm_step(
    x: Tensor, noise: Tensor, alpha_bar: float, alpha_bar_next: float, z: Tensor | None = None,
    eta: float = 1.0,
) -> Tensor:  # fmt: skip
    """One step of DDPM in place, x from alpha_bar to alpha_bar_next by the predicted noise.

        x <- sqrt(next) D + sqrt(1 - next - s^2) noise + s z,   D = (x - sqrt(1 - bar) noise) / sqrt(bar)
        s^2 = eta^2 (1 - next) / (1 - bar) (1 - bar / next)

    eta = 1 is the ancestral step (Ho, Jain, Abbeel, 2006.11239), eta = 0 DDIM (Song, Meng, Ermon,
    2010.02502), which needs no z.

    Args:
        x: float32 or float64 on the cpu, contiguous; it is written to.
        noise: the model's answer, like x.
        alpha_bar: the cumulative product of 1 - beta where x is.
        alpha_bar_next: the same where it goes, not smaller.
        z: standard normals like x.
        eta: from 0 to 1.

    Raises:
        OptionError, FieldError: a step that is none; tensors that are not alike or share memory.
    """
    return _in_place(x, lambda: engine.ddpm_step(x, noise, alpha_bar, alpha_bar_next, z, eta))


def flow_matching_step(x: Tensor, velocity: Tensor, h: float) -> Tensor:
    """One Euler step of a flow in place, x <- x + h velocity.

    Args:
        x: float32 or float64 on the cpu, contiguous; it is written to.
        velocity: the model's answer, like x.
        h: the step in t.

    Raises:
        OptionError, FieldError: a step that is not finite; tensors that are not alike or share memory.
    """
    return _in_place(x, lambda: engine.flow_matching_step(x, velocity, h))


def _in_place(x: Tensor, run: Callable[[], None]) -> Tensor:
    if torch.is_grad_enabled() and x.requires_grad:
        raise OptionError("x requires a gradient, which a step in place has not. Give x.detach().")
    try:
        run()
    except FieldError:
        raise
    except (TypeError, ValueError) as error:
        raise OptionError(str(error)) from error
    increment_version(x)  # torch did not see the write
    return x


class Decoder:
    """A decoder of latents without Python: out <- clamp(decode(z / scale + shift), -1, 1).

    Its weights are looked up when it is made, and have to stay where they are: what is written into
    them is seen, a parameter put in another's place is not.

    Args:
        decode: decode(z) -> images; a module, or a function of modules.
        z: latents of the shape and dtype that it will be given, any number of rows.
        scale, shift: of the latents (a diffusion's latents are scale (z - shift)).

    Raises:
        Uncompilable: names the nodes.
    """

    def __init__(
        self, decode: Callable[[Tensor], Tensor], z: Tensor, scale: float = 1.0, shift: float = 0.0
    ) -> None:
        compiled = Compiled(decode, None, False, timeless=True)
        with torch.no_grad():
            network, weights, self.shape = compiled.program(z)
        self.scale, self.shift, self.dtype, self.latent = scale, shift, z.dtype, z.shape[1:]
        self._decoder = engine.Decoder(network, weights)

    @property
    def handle(self) -> int:
        """The address by which the C functions know it, for as long as it lives."""
        return self._decoder.handle

    def __call__(self, z: Tensor, out: Tensor | None = None) -> Tensor:
        """The images of latents, into ``out`` where it is given.

        Raises:
            OptionError, FieldError: latents or an ``out`` of another shape or dtype.
        """
        if z.ndim == 0 or z.shape[1:] != self.latent:
            raise OptionError(
                f"the latents have shape {tuple(z.shape)}, and this decoder was made for "
                f"{('rows', *self.latent)}. Give such latents, or make a decoder for these."
            )
        images = (len(z), *self.shape)
        into = torch.empty(images, dtype=self.dtype) if out is None else out
        if into.shape != images:
            raise OptionError(
                f"out has shape {tuple(into.shape)}, and the images of these latents {images}. Give an "
                "out of that shape, or none."
            )
        z = z.detach().resolve_neg().contiguous()
        return _in_place(into, lambda: self._decoder.decode(into, z, self.scale, self.shift))


def vae_decode(out: Tensor, z: Tensor, decoder: Decoder) -> Tensor:
    """Images of latents, written into ``out``: clamp(decode(z / scale + shift), -1, 1)."""
    return decoder(z, out)
