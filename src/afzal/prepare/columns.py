"""The further columns of rows that a run's reward and constraint functions ask for."""

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
    """The function behind a reward: the setting itself, or the function of a judge's YAML file; None if there is
    none."""
    if spec and Path(spec).suffix in (".yaml", ".yml") and Path(spec).is_file():
        spec = config.build(JudgeConfig, config.read_file(spec)).function
    return spec if spec and names_function(spec) else None


def requests_of_specs(specs: Iterable[tuple[str | None, int]]) -> list[tuple[str, data.ColumnRequest]]:
    """The functions among these settings by name, each with the columns it asks for. A function that cannot be read
    asks for nothing; its fault is reported when it is opened.

    Args:
        specs: each with the number of arguments that the function is always given.
    """
    requests = []
    for spec, n_given in specs:
        name = function_of(spec)
        try:
            requests += [(name, data.column_request(load_function(name), n_given))] if name else []
        except ValueError:
            continue
    return requests


def requests_of_rewards(*specs: str | None) -> list[tuple[str, data.ColumnRequest]]:
    """The columns that these rewards ask for, by function name."""
    return requests_of_specs((spec, _TEXTS) for spec in specs)


def requests_of_run(settings: TrainConfig) -> list[tuple[str, data.ColumnRequest]]:
    """The columns that a run's functions ask for, by function name."""
    specs: list[tuple[str | None, int]] = []
    if settings.rollouts is not None:
        specs.append((settings.rollouts.reward, _TEXTS))
    if settings.constrained is not None:
        specs += [(settings.constrained.constraint_score, _TEXTS), (settings.constrained.constraint, _TENSORS)]
    return requests_of_specs(specs)


def requested_columns(
    requests: Sequence[tuple[str, data.ColumnRequest]], items: Sequence[Item], where: str
) -> tuple[str, ...]:
    """The columns of these items that the functions ask for.

    Args:
        where: the source of the items.

    Raises:
        AfzalError: a function needs a column that no row has.
    """
    data.refuse_missing_columns(requests, items, where)
    return data.merged_request(requests).columns(items)


def with_columns(trees: Sequence[Tree], items: Sequence[Item], names: Sequence[str]) -> list[Tree]:
    """Trees with these columns of their items."""
    if not names:
        return list(trees)
    rows = data.column_values(items, names)
    return [replace(t, columns=row) for t, row in zip(trees, rows, strict=True)]
