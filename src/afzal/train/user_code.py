"""Call user-defined losses and costs, so that an error in them is reported as theirs and not as Afzal's."""

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


def is_user_defined(fn: Callable[..., Any]) -> bool:
    """Whether a function is user-defined, not part of Afzal."""
    return not str(getattr(inspect.unwrap(fn), "__module__", "")).startswith("afzal.")


@contextmanager
def attribute_errors(fn: Callable[..., Any], name: str, remedy: str) -> Iterator[None]:
    """Turn exceptions inside the block into an error that names ``fn`` and its line, if ``fn`` is user-defined.

    Args:
        name: for the message, such as ``objective 'mine'``.

    Raises:
        AfzalError: for any exception except an AfzalError or out of memory, which pass unchanged.
    """
    try:
        yield
    except Exception as error:
        if not is_user_defined(fn) or isinstance(error, AfzalError) or is_out_of_memory(error):
            raise
        what = f"{name} failed: {type(error).__name__}: {error}"
        raise AfzalError(what, where=_line(fn, error), remedy=remedy) from error


def call_objective(
    objective: Objective, policy: Scored, reference: Scored | None, pairs: Pairs, keywords: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Call an objective: losses ``[n]``, one per unit; their weights ``[n]``; and rewards ``[B]``.

    Args:
        keywords: its parameters and other keyword arguments.

    Raises:
        AfzalError: it is user-defined and fails; or it does not return both; or it returns another number of losses,
            such as their mean, although each loss has its own weight.
    """
    name = f"objective {objective.name!r}"
    contract = _LOSSES.format(unit=objective.unit)
    with attribute_errors(objective.fn, name, contract):
        result = objective.fn(policy, reference, pairs, **keywords)
    if not isinstance(result, tuple) or len(result) != 2:
        raise AfzalError(f"{name} gave a {type(result).__name__}, not two tensors", remedy=contract)
    losses, rewards = result
    weights = unit_weights(objective.unit, pairs, policy.response_of)
    if (shape := list(getattr(losses, "shape", ["no tensor"]))) != list(weights.shape):
        raise AfzalError(
            f"{name} must give {len(weights)} losses, one for each {objective.unit}, and gave {shape or 'one number'}",
            remedy="return the individual losses, without .mean() or .sum(): they are weighted and averaged later",
        )
    return losses, weights, rewards


def _line(fn: Callable[..., Any], error: Exception) -> str:
    """The last line in the file of ``fn`` that ran before the error, as ``file:line``."""
    code = getattr(inspect.unwrap(fn), "__code__", None)
    lines = [f for f in traceback.extract_tb(error.__traceback__) if code and f.filename == code.co_filename]
    return f"{lines[-1].filename}:{lines[-1].lineno}" if lines else ""
