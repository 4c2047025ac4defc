"""Randomness as a function of where a run is, so that no generator's state need be saved."""

from __future__ import annotations

import hashlib

import torch
from torch import Generator


def derive(seed: int, *keys: int | str) -> int:
    """A seed of its own for every (seed, keys), 63 bits."""
    digest = hashlib.blake2b(repr((seed, *keys)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(device: torch.device | str, seed: int, *keys: int | str) -> Generator:
    """A generator on ``device``, started at ``derive(seed, *keys)``."""
    return Generator(device).manual_seed(derive(seed, *keys))
