"""The training run and the small verbs, assembled from the rooms below."""

from .banner import plan
from .export import export
from .train import Stopped, train

__all__ = ["Stopped", "export", "plan", "train"]
