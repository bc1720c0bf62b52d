"""``afzal sweep``: settings of a training varied, and the best arm on held-out prompts within a KL budget."""

from .run import Outcome, plan, sweep

__all__ = ["Outcome", "plan", "sweep"]
