"""Whole runs, assembled from the rooms below: what ``afzal train``, ``iterate``, ``generate``, ``score`` and ``export``
call."""

from .export import export
from .generate import generate
from .iterate import iterate
from .score import score
from .train import Stopped, plan, train

__all__ = ["Stopped", "export", "generate", "iterate", "plan", "score", "train"]
