"""A stateless hash of 64-bit numbers for shuffling and random draws, the same on every machine and version."""

from __future__ import annotations

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15
"""The increment of SplitMix64: 2^64 divided by the golden ratio."""


def avalanche(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014) on uint64: a bijection in which every bit affects
    all."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
