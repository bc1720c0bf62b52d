"""The training run and the small verbs, assembled from the rooms below."""

from .export import export
from .generate import generate
from .train import Stopped, plan, train

__all__ = ["Stopped", "export", "generate", "plan", "train"]
