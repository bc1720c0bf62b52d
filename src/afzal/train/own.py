"""Losses and costs of one's own, called so that what goes wrong in them is said of them and not of Afzal."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from afzal.errors import AfzalError
from afzal.model.memory import is_out_of_memory
from afzal.objectives import Objective, Pairs, Scored, unit_weights

_LOSSES = "it must return a tuple: the losses [n], one for each {unit}, and the rewards [B], one for each response"


def is_own(fn: Callable[..., Any]) -> bool:
    """Whether a function is a person's, and no part of Afzal."""
    return not str(getattr(inspect.unwrap(fn), "__module__", "")).startswith("afzal.")


@contextmanager
def called(fn: Callable[..., Any], name: str, remedy: str) -> Iterator[None]:
    """What is raised in here becomes an error that names ``fn`` and its line, if ``fn`` is a person's own.

    Args:
        name: what to call it, as ``objective 'mine'``.

    Raises:
        AfzalError: anything was raised but an error that says what to do, or that memory has run out.
    """
    try:
        yield
    except Exception as error:
        if not is_own(fn) or isinstance(error, AfzalError) or is_out_of_memory(error):
            raise
        said = f"{name} failed: {type(error).__name__}: {error}"
        raise AfzalError(said, where=_line(fn, error), remedy=remedy) from error


def losses_from(
    objective: Objective, policy: Scored, reference: Scored | None, pairs: Pairs, given: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Of an objective the losses ``[n]``, one per unit; their weights ``[n]``; and the rewards ``[B]``.

    Args:
        given: its parameters, and what else it is called with by name.

    Raises:
        AfzalError: it is a person's own and fails; or it does not give both; or it gives another number of losses, such
            as their mean, although every loss has a weight of its own.
    """
    name = f"objective {objective.name!r}"
    contract = _LOSSES.format(unit=objective.unit)
    with called(objective.fn, name, contract):
        found = objective.fn(policy, reference, pairs, **given)
    if not isinstance(found, tuple) or len(found) != 2:
        raise AfzalError(f"{name} gave a {type(found).__name__}, not two tensors", remedy=contract)
    losses, rewards = found
    weights = unit_weights(objective.unit, pairs, policy.response_of)
    if (shape := list(getattr(losses, "shape", ["no tensor"]))) != list(weights.shape):
        raise AfzalError(
            f"{name} must give {len(weights)} losses, one for each {objective.unit}, and gave {shape or 'one number'}",
            remedy="return the losses as they are, without .mean() or .sum(): they are weighted and averaged later",
        )
    return losses, weights, rewards


def _line(fn: Callable[..., Any], error: Exception) -> str:
    """The last line of the file of ``fn`` that was run before the error."""
    code = getattr(inspect.unwrap(fn), "__code__", None)
    lines = [f for f in traceback.extract_tb(error.__traceback__) if code and f.filename == code.co_filename]
    return f"{lines[-1].filename}:{lines[-1].lineno}" if lines else ""
