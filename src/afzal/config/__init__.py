"""Typed settings of a run: YAML and ``key=value`` in, a checked and frozen object out, the resolved copy back to YAML.

A key is known or refused, with the nearest known one; so is a key that the chosen method would ignore. Nothing below
the recipes ever sees these objects.
"""

from .advice import advice
from .compare import START, CompareConfig, Entry, entries, ordered, substituted
from .explain import Setting, suggestion
from .export import ExportConfig
from .iterate import PEOPLE, PRESETS, IterateConfig
from .methods import CONFIGS
from .models import (
    CONSTRAINT_NEEDS,
    LOW_RANK,
    METHODS,
    VIRTUAL,
    BetaConfig,
    GenerateConfig,
    KTOConfig,
    LiveReferenceConfig,
    Method,
    PairConfig,
    PolicyConfig,
    PreferConfig,
    ReferenceConfig,
    RewardConfig,
    ScoreConfig,
    Settings,
    SFTConfig,
    TrainConfig,
    section,
)
from .online import GRPOConfig, OnlineConfig, PenaltyConfig, PPOConfig, ReinforceConfig, RLOOConfig
from .planning import PlanConfig
from .reading import build, dump, load, make, method_of, read_file, read_override, resolve

__all__ = [
    "CONFIGS",
    "CONSTRAINT_NEEDS",
    "LOW_RANK",
    "METHODS",
    "PEOPLE",
    "PRESETS",
    "START",
    "VIRTUAL",
    "BetaConfig",
    "CompareConfig",
    "Entry",
    "ExportConfig",
    "GRPOConfig",
    "GenerateConfig",
    "IterateConfig",
    "KTOConfig",
    "LiveReferenceConfig",
    "Method",
    "OnlineConfig",
    "PPOConfig",
    "PairConfig",
    "PenaltyConfig",
    "PlanConfig",
    "PolicyConfig",
    "PreferConfig",
    "RLOOConfig",
    "ReferenceConfig",
    "ReinforceConfig",
    "RewardConfig",
    "SFTConfig",
    "ScoreConfig",
    "Setting",
    "Settings",
    "TrainConfig",
    "advice",
    "build",
    "dump",
    "entries",
    "load",
    "make",
    "method_of",
    "ordered",
    "read_file",
    "read_override",
    "resolve",
    "section",
    "substituted",
    "suggestion",
]
