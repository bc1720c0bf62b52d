"""The other columns of rows that a run's functions ask for: rewards, and constraints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from afzal import config, data
from afzal.config import TrainConfig
from afzal.config.judging import JudgeConfig
from afzal.objectives import load_function, names_function
from afzal.records import Item
from afzal.tokens import Tree

_TEXTS = 2  # prompt and answer
_TENSORS = 6  # of a constraint: see afzal.train.constraints.Cost


def function_of(spec: str | None) -> str | None:
    """The function that a reward comes to: itself, or that of a judge's YAML file; None where it is none."""
    if spec and Path(spec).suffix in (".yaml", ".yml") and Path(spec).is_file():
        spec = config.build(JudgeConfig, config.read_file(spec)).function
    return spec if spec and names_function(spec) else None


def asked_by_specs(specs: Iterable[tuple[str | None, int]]) -> list[tuple[str, data.Asked]]:
    """The functions among these settings, by name, with what each asks for. One that cannot be read asks for nothing:
    what is wrong with it is said where it is opened.

    Args:
        specs: each with the number of arguments that the function is always given.
    """
    found = []
    for spec, own in specs:
        name = function_of(spec)
        try:
            found += [(name, data.asked_by(load_function(name), own))] if name else []
        except ValueError:
            continue
    return found


def asked_by_rewards(*specs: str | None) -> list[tuple[str, data.Asked]]:
    """What these rewards ask for, each by the name of its function."""
    return asked_by_specs((spec, _TEXTS) for spec in specs)


def asked_by_run(settings: TrainConfig) -> list[tuple[str, data.Asked]]:
    """What the functions of a run that are called about its rows ask for."""
    specs: list[tuple[str | None, int]] = []
    if settings.rollouts is not None:
        specs.append((settings.rollouts.reward, _TEXTS))
    if settings.constrained is not None:
        specs += [(settings.constrained.constraint_score, _TEXTS), (settings.constrained.constraint, _TENSORS)]
    return asked_by_specs(specs)


def columns_for(asked: Sequence[tuple[str, data.Asked]], items: Sequence[Item], where: str) -> tuple[str, ...]:
    """The columns of these items that the functions ask for.

    Args:
        where: the source of the items.

    Raises:
        AfzalError: a function needs a column that no row has.
    """
    data.refuse_lacking(asked, items, where)
    return data.union_of(asked).columns(items)


def with_columns(trees: Sequence[Tree], items: Sequence[Item], names: Sequence[str]) -> list[Tree]:
    """Trees with these columns of the items that they were made of."""
    if not names:
        return list(trees)
    rows = data.columns_of(items, names)
    return [replace(t, columns=row) for t, row in zip(trees, rows, strict=True)]
