"""Whole runs, assembled from the rooms below: what ``afzal train``, ``iterate``, ``generate``, ``score`` and ``export``
call."""

from .compare import compare
from .compare import plan as compare_plan
from .export import export
from .generate import generate
from .iterate import iterate
from .score import score
from .train import Stopped, plan, train

__all__ = ["Stopped", "compare", "compare_plan", "export", "generate", "iterate", "plan", "score", "train"]
