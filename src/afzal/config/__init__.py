"""Typed settings of a run: YAML and ``key=value`` in, a checked and frozen object out, the resolved copy back to YAML.

An unknown key is refused with the nearest known one; so is a key that the chosen method would ignore. Nothing below
the recipes ever sees these objects.
"""

from .advice import advice
from .annotate import AnnotateConfig
from .ask import AskConfig
from .base import Settings, members
from .board import BoardConfig
from .chat import ChatConfig
from .compare import START, CompareConfig, Entry, entries, ordered, substituted, variables
from .error_messages import Setting, suggestion
from .export import ExportConfig
from .generate import GenerateConfig
from .iterate import PEOPLE, PRESETS, IterateConfig
from .ladder import LadderConfig
from .method import Cost, Method, Paper
from .methods import CONFIGS, METHODS, method_in
from .planning import PlanConfig
from .reading import build, dump, load, make, method_of, of_file, read_file, read_override, resolve, stated
from .revise import PrinciplesConfig, ReviseConfig
from .score import ScoreConfig
from .sections import CONSTRAINT_NEEDS, LOW_RANK, VIRTUAL, DataSettings, ModelSettings, ObjectiveSettings, section
from .sweep import ADAPTIVE, FIXED, Axis, Goal, SweepConfig
from .training import (
    REFERENCES,
    BetaConfig,
    ConstrainedConfig,
    LiveReferenceConfig,
    OnlineConfig,
    PolicyConfig,
    ReferenceConfig,
    TrainConfig,
)

__all__ = [
    "ADAPTIVE",
    "CONFIGS",
    "CONSTRAINT_NEEDS",
    "FIXED",
    "LOW_RANK",
    "METHODS",
    "PEOPLE",
    "PRESETS",
    "REFERENCES",
    "START",
    "VIRTUAL",
    "AnnotateConfig",
    "AskConfig",
    "Axis",
    "BetaConfig",
    "BoardConfig",
    "ChatConfig",
    "CompareConfig",
    "ConstrainedConfig",
    "Cost",
    "DataSettings",
    "Entry",
    "ExportConfig",
    "GenerateConfig",
    "Goal",
    "IterateConfig",
    "LadderConfig",
    "LiveReferenceConfig",
    "Method",
    "ModelSettings",
    "ObjectiveSettings",
    "OnlineConfig",
    "Paper",
    "PlanConfig",
    "PolicyConfig",
    "PrinciplesConfig",
    "ReferenceConfig",
    "ReviseConfig",
    "ScoreConfig",
    "Setting",
    "Settings",
    "SweepConfig",
    "TrainConfig",
    "advice",
    "build",
    "dump",
    "entries",
    "load",
    "make",
    "members",
    "method_in",
    "method_of",
    "of_file",
    "ordered",
    "read_file",
    "read_override",
    "resolve",
    "section",
    "stated",
    "substituted",
    "suggestion",
    "variables",
]
