"""Whole runs, assembled from the rooms below. ``afzal train`` and ``afzal generate`` call these."""

from .generate import generate
from .train import Stopped, plan, train

__all__ = ["Stopped", "generate", "plan", "train"]
