"""Any registered objective, a weighted sum of them, or your own; with constraints."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ..method import Cost, Expression, Method
from ..sections import ObjectiveSettings
from ..training import ConstrainedConfig


class PreferConfig(ObjectiveSettings, ConstrainedConfig, frozen=True):
    """Any registered objective, a weighted sum of them, or your own."""

    method: Literal["prefer"] = Field("prefer", description="Any objective.")

    @property
    def chosen(self) -> PreferConfig:
        return self

    @model_validator(mode="after")
    def _learned_parts(self) -> Self:
        if self.learn is None:
            self._refuse(("learned_lr",), "learn names no parameter")
        elif self.lr == 0:
            raise ValueError("learn has no effect: lr is 0, and learned_lr follows its schedule")
        return self


def objective(config: PreferConfig) -> Expression:
    """The objective that the settings name."""
    return config.objective, dict(config.objective_arg)


METHOD = Method(
    name="prefer",
    line="Any objective by name, a weighted sum of objectives, or your own: see afzal objectives.",
    title="",
    full="",
    settings=PreferConfig,
    objective=objective,
    cost=Cost(2, reference=True),
)
