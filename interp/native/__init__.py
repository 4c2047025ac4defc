"""Fields without Python: models compiled to programs of the engine, and kernels of a user's own."""

from .compiled import Compiled, compile
from .field import NativeField, NativeModel

__all__ = ["Compiled", "NativeField", "NativeModel", "compile"]
