"""The settings of a ladder: a judge assisted by a model that the level below trained."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from .base import Settings
from .debating import DebaterConfig
from .error_messages import suggestion
from .judging import JudgeConfig
from .methods import CONFIGS

ASSISTANTS = {"reward": "${reward}", "model": "${policy}"}
"""The required ``model`` of an assistant by its kind; it means the model trained on the level below."""
_RESERVED = ("method", "model", "data", "eval_data", "out", "seed")  # decided by the ladder itself


class LadderConfig(Settings, frozen=True):
    """Recursive reward modelling: levels 0 to ``levels``, each assisted by the one below."""

    model: str = Field(
        description="The start model: a model folder, a run folder or a hub id. Every reward model and the first "
        "policy start from it; each later policy starts from the one below."
    )
    data: str = Field(description="Pairs of answers for the judge to label on every level. Their votes are not used.")
    eval_data: str = Field(
        description="Pairs whose better answer is known, from gold or from votes. Every level is measured on them; "
        "none is trained on their prompts."
    )
    judge: JudgeConfig = Field(
        description="The judge, as in a file of kind assisted. Its assistant is {kind: reward, model: ${reward}} or "
        "{kind: model, model: ${policy}}: the reward model or the policy of the level below. On level 0 the judge "
        "decides alone."
    )
    levels: int = Field(2, ge=1, description="The highest level. A higher number continues a finished ladder.")
    train_reward: dict[str, Any] = Field({}, description="Settings for training the reward models.")
    train_policy: dict[str, Any] = Field({}, description="Settings for training the policies, by DPO.")
    common: dict[str, Any] = Field({}, description="Settings for both; train_reward and train_policy override them.")
    seed: int = Field(0, ge=0, description="Seed of the training runs.")
    resamples: int = Field(1000, ge=2, description="Bootstrap resamples of the prompts, for the intervals.")
    out: str = Field("ladder", description="Folder for the levels and the report.")

    @model_validator(mode="after")
    def _climbs(self) -> Self:
        assistant = self.judge.assistant
        if self.judge.kind != "assisted" or assistant is None:
            raise ValueError(f"judge: a ladder needs a judge of kind assisted, not {self.judge.kind}")
        if self.judge.name is not None:
            raise ValueError("judge: name has no effect: judges are named after their levels")
        if ASSISTANTS.get(assistant.kind, "") != assistant.model:
            required = " or ".join(f"{{kind: {kind}, model: {model}}}" for kind, model in ASSISTANTS.items())
            raise ValueError(f"judge: assistant must be {required}, or no level would learn from the one below")
        if assistant.swapped:
            raise ValueError("judge: swapped has no effect: a swapped assistant runs on every level anyway")
        return self

    @model_validator(mode="after")
    def _trainings(self) -> Self:
        fields_of = {"train_reward": CONFIGS["reward"].model_fields, "train_policy": CONFIGS["dpo"].model_fields}
        for where, fields in fields_of.items():
            self._refuse_unknown(where, getattr(self, where), fields)
        self._refuse_unknown("common", self.common, {**fields_of["train_reward"], **fields_of["train_policy"]})
        return self

    def _refuse_unknown(self, where: str, settings: dict[str, Any], fields: Any) -> None:
        for key in settings:
            if key in _RESERVED:
                raise ValueError(f"{where}: {key!r} is set by the ladder itself")
            if key not in fields:
                raise ValueError(f"{where}: unknown setting {key!r}{suggestion(key, fields)}")

    def assisted(self, folder: str, **changes: Any) -> JudgeConfig:
        """The judge of a level above 0.

        Args:
            folder: the level below; its run of the assistant's kind is the assistant.
            changes: changes to the assistant, such as ``swapped``.
        """
        assistant = self.judge.assistant
        assert assistant is not None
        model = f"{folder}/{'reward' if assistant.kind == 'reward' else 'policy'}"
        return self.judge.model_copy(update={"assistant": assistant.model_copy(update={"model": model, **changes})})

    def alone(self) -> JudgeConfig:
        """The judge of level 0, without an assistant."""
        return self.judge.model_copy(update={"assistant": DebaterConfig.model_validate({"kind": "none"})})
