"""Meta-learning: an adapter that adapts to a new task in a few steps."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ..adaptation import AdaptationSettings
from ..method import Cost, Expression, Method, Paper
from ..sections import ObjectiveSettings
from ..training import ReferenceConfig


class MetaConfig(ObjectiveSettings, AdaptationSettings, ReferenceConfig, frozen=True):
    """An adapter trained over many tasks so that a few steps suffice for the next one."""

    method: Literal["meta"] = Field("meta", description="Meta-learning over tasks.")
    batch_size: int = Field(4, ge=1, description="Tasks per update.")
    lr: float = Field(1e-4, ge=0, description="Peak learning rate of the updates; larger by default with an adapter.")

    @property
    def chosen(self) -> MetaConfig:
        return self

    @property
    def adaptation(self) -> MetaConfig:
        return self

    @model_validator(mode="before")
    @classmethod
    def _full_precision(cls, values: Any) -> Any:
        """Default to float32: inner steps are small."""
        return {"dtype": "fp32", **values} if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _adaptation_parts(self) -> Self:
        if self.dtype != "fp32":
            raise ValueError(f"dtype {self.dtype} would round inner steps away: leave dtype out")
        self._refuse(("learn", "learned_lr"), "inner steps move the adapter alone")
        self._refuse(("quantize",), "inner steps are taken in fp32")
        self._refuse(("reference_sync_steps",), "inner and outer losses share one reference")
        self._refuse(("prior",), "the adapter is the starting point of the tasks and is not held near another")
        if self.inner_steps == 0:
            self._refuse(("inner_lr",), "there is no inner step")
        if self.order == "reptile":
            self._refuse(("query_size",), "reptile has no query set in training")
            if self.inner_steps == 0:
                raise ValueError("reptile needs inner_steps: its gradient is their total displacement")
        if self.order == "maml" and (self.compile or self.activation_checkpointing == "full"):
            raise ValueError("order maml allows neither compile nor activation_checkpointing: it differentiates twice")
        return self


def objective(config: MetaConfig) -> Expression:
    """The objective that the settings name."""
    return config.objective, dict(config.objective_arg)


METHOD = Method(
    name="meta",
    line="Meta-learning over tasks (FOMAML, Reptile, MAML): an adapter that adapts to a new task in a few steps.",
    title="meta-learning over tasks",
    full="meta-learning over tasks",
    settings=MetaConfig,
    objective=objective,
    cost=Cost(2, reference=True, alone=True),
    paper=Paper(
        "finn2017maml",
        "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks",
        "Finn, Chelsea and Abbeel, Pieter and Levine, Sergey",
        "2017",
        "1703.03400",
    ),
    usual_lr=((1e-6, 1e-3), (1e-5, 1e-2)),
    small_batches=True,
    over_optimises=False,
)
