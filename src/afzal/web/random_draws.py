"""Random draws that depend only on a seed and names: a restarted page asks as if it had never stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def random_bits(*names: object) -> int:
    """64 uniform bits, the same for the same names on every machine."""
    text = "\0".join(map(str, names))
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def bernoulli(share: float, *names: object) -> bool:
    """Return True for this share of all names."""
    return random_bits(*names) < share * 2**64


def is_swapped(seed: int, annotator: str, position: int) -> bool:
    """Whether the two responses are shown swapped in the vote with this number (from 0).

    Balanced blocks of two: exactly one of votes 2b and 2b + 1 is swapped, and a draw decides which. So after every even
    number of votes, a person has seen each response first equally often.
    """
    return bool(random_bits(seed, annotator, "side", position // 2) & 1) ^ bool(position % 2)


def shuffled(responses: Sequence[int], *names: object) -> tuple[int, ...]:
    """The responses in an order drawn for these names."""
    return tuple(sorted(responses, key=lambda k: random_bits(*names, "place", k)))
