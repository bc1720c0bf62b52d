"""``afzal iterate``: rounds of sampling, judging and training, each from the last one's policy."""

from .run import iterate

__all__ = ["iterate"]
