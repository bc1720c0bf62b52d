"""The settings of the methods that learn from data as it is given: SFT, preferences, labels, reward models."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from .base import Names, ObjectiveArguments, ObjectiveName
from .sections import VIRTUAL, ConstraintSettings
from .training import LiveReferenceConfig, PolicyConfig, TrainConfig


class SFTConfig(PolicyConfig, frozen=True):
    """Supervised fine-tuning on the good responses."""

    method: Literal["sft"] = Field("sft", description="Supervised fine-tuning.")
    lr: float = Field(2e-5, ge=0, description="Peak learning rate, 0 for none; larger by default with an adapter.")


class ReferenceConfig(LiveReferenceConfig, frozen=True):
    """Methods on data that is known beforehand, so that the reference's log-probs may be kept."""

    reference: str = Field(
        "frozen",
        description="frozen (copy of the starting weights), cached (their log-probs on disk), adapter_off, or a model.",
    )
    reference_cache: str | None = Field(
        None, description="Folder of cached reference log-probs, to be shared by runs; default: inside the run folder."
    )

    @model_validator(mode="after")
    def _cache_parts(self) -> Self:
        if self.reference != "cached":
            self._refuse(("reference_cache",), f"the reference is {self.reference}, not cached")
        return self


class BetaConfig(ReferenceConfig, frozen=True):
    """Methods of one objective with a reference, whose strength is ``beta``."""

    beta: float = Field(0.1, gt=0, description="Strength of the pull to the reference; larger stays nearer to it.")


class PairConfig(BetaConfig, frozen=True):
    """Direct (DPO) or identity (IPO) preference optimisation on pairs."""

    method: Literal["dpo", "ipo"] = Field("dpo", description="Direct or identity preference optimisation.")


# What each ready constraint must be given, and only it.
CONSTRAINT_NEEDS = {
    "unsafe_mass": "constraint_tokens",
    "unsafe_likelihood": "constraint_data",
    "black_box": "constraint_score",
}


class PreferConfig(ConstraintSettings, ReferenceConfig, frozen=True):
    """Any objective of the registry, a weighted sum of them, or one of your own."""

    method: Literal["prefer"] = Field("prefer", description="Any objective.")
    objective: ObjectiveName = "dpo"
    objective_arg: ObjectiveArguments = Field({})
    soft_labels: Literal["keep", "majority"] = Field(
        "keep", description="majority turns a label's probability into certainty, for objectives that need it."
    )
    learn: Names = Field(None, description="Parameters of the objective to learn, such as nu (ties).")
    learned_lr: float = Field(1e-2, gt=0, description="Peak learning rate of the parameters named by learn.")

    @model_validator(mode="after")
    def _constraint_parts(self) -> Self:
        if self.learn is None:
            self._refuse(("learned_lr",), "learn names no parameter")
        elif self.lr == 0:
            raise ValueError("learn is without effect: lr is 0, and learned_lr follows its course")
        own = CONSTRAINT_NEEDS.get(self.constraint or "")
        others = [key for key in CONSTRAINT_NEEDS.values() if key != own]
        if self.constraint is None:
            self._refuse(
                ("constraint_bound", "constraint_weight", "constraint_dual_lr", *others), "there is no constraint"
            )
            return self
        self._refuse(others, f"the constraint is {self.constraint}")
        if (self.constraint_weight is None) == (self.constraint_dual_lr is None):
            raise ValueError(
                "constraint needs constraint_weight (a penalty) or constraint_dual_lr (a multiplier), one of them"
            )
        if own and getattr(self, own) is None:
            raise ValueError(f"constraint {self.constraint} needs {own}")
        if not own and ":" not in self.constraint:
            known = ", ".join(CONSTRAINT_NEEDS)
            raise ValueError(
                f"constraint cannot be {self.constraint!r}; choose one of {known}, module:function or file.py:function"
            )
        return self


class KTOConfig(BetaConfig, frozen=True):
    """Kahneman-Tversky optimisation on single responses labelled good or bad."""

    method: Literal["kto"] = Field("kto", description="Kahneman-Tversky optimisation.")
    lr: float = Field(5e-6, ge=0, description="Peak learning rate, 0 for none; larger by default with an adapter.")
    desirable_weight: float = Field(1.0, gt=0, description="Weight of good responses in the loss.")
    undesirable_weight: float = Field(1.0, gt=0, description="Weight of bad responses in the loss.")


class RewardConfig(TrainConfig, frozen=True):
    """A reward model on pairs, ties, soft labels, strengths and rankings."""

    method: Literal["reward"] = Field("reward", description="Reward model.")
    lr: float = Field(1e-5, ge=0, description="Peak learning rate, 0 for none; larger by default with an adapter.")
    objective: str = Field(
        "bradley_terry", description="The loss: bradley_terry, bradley_terry_margin, or another of reward models."
    )
    centering: float = Field(
        0.01, ge=0, description="Weight of (r_w + r_l)^2 in the loss, which draws the mean score to 0."
    )
    heads: int = Field(
        1, ge=1, le=64, description="Heads on one trunk, each on its own bootstrap of the items: their spread is doubt."
    )
    shift: Literal["none", "chosen"] = Field(
        "chosen", description="State in config.json (reward_shift) what gives the preferred responses a mean of 0."
    )

    @model_validator(mode="after")
    def _adapter_merges(self) -> Self:
        if self.adapter in VIRTUAL:
            raise ValueError(f"adapter {self.adapter} is for models that write; choose lora, dora, rslora or ia3")
        return self
