"""``afzal compare``: methods trained on the same data from the same start, measured on the same prompts."""

from .run import compare, plan

__all__ = ["compare", "plan"]
