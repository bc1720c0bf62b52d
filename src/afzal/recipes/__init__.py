"""Whole runs, assembled from the rooms below. ``afzal train``, ``generate``, ``score`` and ``export`` call these."""

from .export import export
from .generate import generate
from .score import score
from .train import Stopped, plan, train

__all__ = ["Stopped", "export", "generate", "plan", "score", "train"]
