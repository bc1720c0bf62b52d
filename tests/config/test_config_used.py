"""No setting is ignored: every setting is read in a room that runs something."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

import afzal
from afzal import config

ROOMS = ("prepare", "generate", "recipes", "rewards", "iterate", "compare", "config/methods")


@cache
def read_names() -> set[str]:
    """Attributes and string constants in the rooms that use settings."""
    paths = [path for room in ROOMS for path in (Path(afzal.__file__).parent / room).glob("*.py")]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return attributes | {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}


OTHERS = (config.GenerateConfig, config.ScoreConfig, config.CompareConfig, config.ExportConfig, config.IterateConfig)


@pytest.mark.parametrize("kind", [*config.CONFIGS.values(), *OTHERS])
def test_every_setting_is_read(kind: type[config.Settings]):
    assert set(kind.model_fields) - {"preset"} <= read_names()  # presets are read where settings are resolved
