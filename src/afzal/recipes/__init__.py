"""The training run and the small verbs, assembled from the rooms below."""

from .export import export
from .telling import plan
from .train import Stopped, train

__all__ = ["Stopped", "export", "plan", "train"]
