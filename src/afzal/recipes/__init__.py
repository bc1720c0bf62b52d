"""Whole runs, assembled from the rooms below. ``afzal train``, ``afzal generate`` and ``afzal score`` call these."""

from .generate import generate
from .score import score
from .train import Stopped, plan, train

__all__ = ["Stopped", "generate", "plan", "score", "train"]
