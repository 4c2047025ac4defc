"""Fields without Python: models compiled to programs of the engine, and kernels of a user's own."""

from .compiled import Compiled, compile
from .field import NativeField, NativeModel
from .kernels import Decoder, Kernel, ddpm_step, flow_matching_step, vae_decode

__all__ = [
    "Compiled", "Decoder", "Kernel", "NativeField", "NativeModel", "compile", "ddpm_step",
    "flow_matching_step", "vae_decode",
]  # fmt: skip
