"""``afzal ladder``: recursive reward modelling, in which each level trains the assistant of the next."""

from .run import ladder, plan

__all__ = ["ladder", "plan"]
