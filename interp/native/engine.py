"""The engine's side of native fields."""

from rust_solvers import Network

__all__ = ["Network"]
