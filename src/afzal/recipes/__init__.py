"""The training run and the small verbs, assembled from the rooms below."""

from .banner import max_steps_note, plan
from .export import export
from .train import Stopped, train

__all__ = ["Stopped", "export", "max_steps_note", "plan", "train"]
