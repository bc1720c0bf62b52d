"""``afzal compare``: methods trained on the same data from the same start, and measured on the same prompts."""

from .run import compare, plan

__all__ = ["compare", "plan"]
