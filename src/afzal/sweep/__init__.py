"""``afzal sweep``: vary the settings of a training and find the best arm on held-out prompts within a KL budget."""

from .run import Outcome, plan, sweep

__all__ = ["Outcome", "plan", "sweep"]
