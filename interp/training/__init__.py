"""Training: one loop for every family, in a folder that a killed run resumes from."""

from .loop import Trained, train
from .run import load

__all__ = ["Trained", "load", "train"]
