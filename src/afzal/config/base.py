"""The base of all settings: unknown keys are refused, and values may be written as text."""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, Field, field_validator
from pydantic_core import PydanticCustomError


def members(annotation: Any) -> set[Any]:
    """The plain types of an annotation: ``int | None`` gives {int, NoneType}; a Literal counts as one type."""
    if get_origin(annotation) in (Union, types.UnionType):
        return set().union(*(members(a) for a in get_args(annotation)))
    return {annotation}


class Settings(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True):
    """A frozen set of settings that refuses unknown keys."""

    @field_validator("*", mode="before")
    @classmethod
    def _bool_is_no_number(cls, value: Any, info: Any) -> Any:
        if isinstance(value, bool) and bool not in members(cls.model_fields[info.field_name].annotation):
            raise PydanticCustomError("truth", "true and false are not numbers")
        return value

    def _refuse(self, keys: Iterable[str], because: str) -> None:
        """Refuse values other than the default for settings that would be ignored."""
        for key in keys:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} has no effect: {because}")


def _split_pairs(value: Any, example: str) -> Any:
    """Read ``a=1,b=2`` as a mapping; return anything but text unchanged."""
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in value.split(",")]
    if any(not sign for _, sign, _ in pairs):
        raise ValueError(f"write it as {example}")
    return {key.strip(): field.strip() for key, _, field in pairs}


def _number_or_text(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def split_names(value: Any) -> Any:
    """Read ``a,b`` as a list; return anything but text unchanged."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _split_columns(value: Any) -> Any:
    return _split_pairs(value, "role=field,role=field, such as chosen=good,prompt=question")


def _split_arguments(value: Any) -> Any:
    pairs = _split_pairs(value, "name=value,name=value, such as beta=0.2")
    return {k: _number_or_text(v) for k, v in pairs.items()} if isinstance(pairs, dict) else pairs


Columns = Annotated[dict[str, str], BeforeValidator(_split_columns)]
Arguments = Annotated[dict[str, float | str], BeforeValidator(_split_arguments)]
Names = Annotated[list[str] | None, BeforeValidator(split_names)]
ObjectiveName = Annotated[
    str,
    Field(
        description="A name (see afzal objectives), a sum such as 0.8*dpo+0.2*bco_pair+1.0*nll, module:function or "
        "file.py:function."
    ),
]
ObjectiveArguments = Annotated[
    Arguments,
    Field(description="Parameters of the objective, as beta=0.2; those of one term of a sum, as bco_pair.beta=0.05."),
]
