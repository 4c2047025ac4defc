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


def seed_global(seed: int) -> None:
    """Start torch's global generators, as ``torch.manual_seed`` does.

    Where there is no accelerator, that formats a stack trace at every call, for the day on which one comes:
    a tenth of a step of a small network.
    """
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
