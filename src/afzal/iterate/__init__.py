"""``afzal iterate``: rounds of sampling, judging and training, each from the last one's policy."""

from .run import check, iterate

__all__ = ["check", "iterate"]
