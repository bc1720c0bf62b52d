"""Objectives: pure functions of log-probs, found by name in one registry. Imports nothing but torch."""

from . import likelihood, preference, unpaired
from .inputs import Pairs, Scored, pairs
from .likelihood import sft
from .preference import dpo, ipo, log_ratios, soft_label
from .registry import REGISTRY, Objective, get, objective, unit_weights
from .unpaired import kto

__all__ = [
    "REGISTRY",
    "Objective",
    "Pairs",
    "Scored",
    "dpo",
    "get",
    "ipo",
    "kto",
    "likelihood",
    "log_ratios",
    "objective",
    "pairs",
    "preference",
    "sft",
    "soft_label",
    "unit_weights",
    "unpaired",
]
