"""The training run and the small verbs, assembled from the rooms below."""

from .export import export
from .train import Stopped, plan, train

__all__ = ["Stopped", "export", "plan", "train"]
