"""Typed settings of a run: YAML and ``key=value`` in, a checked and frozen object out, the resolved copy back to YAML.

A key is known or refused, with the nearest known one; so is a key that the chosen method would ignore. Nothing below
the recipes ever sees these objects.
"""

from .advice import advice
from .annotate import AnnotateConfig
from .ask import AskConfig
from .base import Settings, members
from .compare import START, CompareConfig, Entry, entries, ordered, substituted, variables
from .explain import Setting, suggestion
from .export import ExportConfig
from .generate import GenerateConfig
from .iterate import PEOPLE, PRESETS, IterateConfig
from .methods import CONFIGS
from .offline import (
    CONSTRAINT_NEEDS,
    BetaConfig,
    KTOConfig,
    PairConfig,
    PreferConfig,
    ReferenceConfig,
    RewardConfig,
    SFTConfig,
)
from .online import GRPOConfig, OnlineConfig, PenaltyConfig, PPOConfig, ReinforceConfig, RLOOConfig
from .planning import PlanConfig
from .reading import build, dump, load, make, method_of, read_file, read_override, resolve
from .score import ScoreConfig
from .sections import LOW_RANK, VIRTUAL, ModelSettings, section
from .training import METHODS, REFERENCES, LiveReferenceConfig, Method, PolicyConfig, TrainConfig

__all__ = [
    "CONFIGS",
    "CONSTRAINT_NEEDS",
    "LOW_RANK",
    "METHODS",
    "PEOPLE",
    "PRESETS",
    "REFERENCES",
    "START",
    "VIRTUAL",
    "AnnotateConfig",
    "AskConfig",
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
    "ModelSettings",
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
    "members",
    "method_of",
    "ordered",
    "read_file",
    "read_override",
    "resolve",
    "section",
    "substituted",
    "suggestion",
    "variables",
]
