"""The settings that all training methods share, and those that train a policy."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, field_validator, model_validator

from .base import Settings
from .memory import MemorySettings
from .online import RolloutSettings
from .sections import (
    CONSTRAINT_NEEDS,
    LOW_RANK,
    VIRTUAL,
    AdapterKind,
    ConstraintSettings,
    DataSettings,
    EvaluationSettings,
    HubSettings,
    ModelSettings,
    OptimisationSettings,
    RunSettings,
    SampleSettings,
    WriterSettings,
)

REFERENCES = ("frozen", "cached", "adapter_off")

if TYPE_CHECKING:
    from .adaptation import AdaptationSettings
    from .online import ValueSettings
    from .sections import DemonstrationSettings, ObjectiveSettings, ScorerSettings

_CLIPS = ("clip", "clip_high", "value_clip")
_USUAL_RANK = 8
_USUAL_VIRTUAL_TOKENS = 20
# Factor on the learning rate of all weights; 10 for low-rank adapters
_LR_FACTOR: dict[AdapterKind | None, int] = {"ia3": 100, "prefix": 1000, "prompt": 1000, "p_tuning": 1000}


def fill_adapter(filled: dict[str, Any], kind_of_settings: type[Settings]) -> None:
    """Fill in an adapter's default rank, virtual tokens and learning rate."""
    kind, fields = filled.get("adapter"), kind_of_settings.model_fields
    if kind in LOW_RANK and filled.get("lora_rank") is None:
        filled["lora_rank"] = _USUAL_RANK
    if kind in VIRTUAL and "virtual_tokens" in fields and filled.get("virtual_tokens") is None:
        filled["virtual_tokens"] = _USUAL_VIRTUAL_TOKENS
    if kind is not None or filled.get("lora_rank") is not None or filled.get("adapter_from") is not None:
        filled.setdefault("lr", float(f"{_LR_FACTOR.get(kind, 10) * fields['lr'].default:g}"))


class TrainConfig(
    HubSettings,
    RunSettings,
    EvaluationSettings,
    OptimisationSettings,
    MemorySettings,
    ModelSettings,
    DataSettings,
    frozen=True,
):
    """The settings of every training method; use the method's class, or :func:`afzal.config.make`."""

    method: str = Field(description="What to train: the name of a method, such as sft, dpo or ppo.")

    # A method's capabilities, each as the settings that configure it, or None. The rooms that train ask for these and
    # never for the method's name, so a new method is only a class.

    @property
    def policy(self) -> PolicyConfig | None:
        """Settings of a model that writes; None for one that scores."""
        return None

    @property
    def referenced(self) -> LiveReferenceConfig | None:
        """Settings of a policy that may be kept near a reference."""
        return None

    @property
    def cacheable(self) -> ReferenceConfig | None:
        """Settings of a reference whose log-probs can be cached because the data are known beforehand."""
        return None

    @property
    def rollouts(self) -> OnlineConfig | None:
        """Settings of a policy that learns from rewards of its own answers."""
        return None

    @property
    def critic(self) -> ValueSettings | None:
        """Settings of a value model that trains alongside the policy."""
        return None

    @property
    def chosen(self) -> ObjectiveSettings | None:
        """Settings of a method whose objective is a setting."""
        return None

    @property
    def adaptation(self) -> AdaptationSettings | None:
        """Settings of an adapter trained to adapt to a new task in a few steps."""
        return None

    @property
    def constrained(self) -> ConstrainedConfig | None:
        """Settings of a constraint on the policy, in addition to its objective."""
        return None

    @property
    def scorer(self) -> ScorerSettings | None:
        """Settings of a model that scores answers: a reward model."""
        return None

    @property
    def demonstrated(self) -> DemonstrationSettings | None:
        """Settings of a reward inferred from demonstrations and samples."""
        return None

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        """Fill in defaults that depend on other settings."""
        if not isinstance(values, dict):
            return values
        filled = {"method": cls.model_fields["method"].default, **values}
        fill_adapter(filled, cls)
        if filled.get("eval_data") is not None:
            filled.setdefault("eval_fraction", 0.0)
        if isinstance(data := filled.get("data"), str) and not filled.get("out"):
            filled["out"] = f"runs/{filled['method']}-{re.sub(r'[.].*', '', Path(data).name) or 'data'}"
        return filled

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        """Refuse settings that would be ignored."""
        if self.eval_data is not None and self.eval_fraction > 0:
            raise ValueError("eval_fraction has no effect with eval_data: leave one of them out")
        if self.eval_data is None and self.eval_fraction == 0:
            self._refuse(("eval_every_steps", "early_stop_patience"), "nothing is held out (eval_fraction is 0)")
        self._refuse_adapter_parts()
        self._refuse_hub_parts()
        if self.optimizer != "adamw":
            self._refuse(("adam_beta1", "adam_beta2"), f"the optimizer is {self.optimizer}")
        if self.optimizer == "sgd":
            self._refuse(("adam_eps",), "the optimizer is sgd")
        if self.offload == "reference" and getattr(self, "reference", "cached") == "cached":
            raise ValueError("offload reference has no effect: no reference weights are held in memory")
        if self.activation_checkpointing != "auto" and self.tokens_per_forward is not None:
            self._refuse(("memory_gb",), "neither activation_checkpointing nor tokens_per_forward is auto")
        return self


class PolicyConfig(WriterSettings, SampleSettings, TrainConfig, frozen=True):
    """Methods that train a model that writes."""

    @property
    def policy(self) -> PolicyConfig:
        return self

    @property
    def has_new_adapter(self) -> bool:
        return self.adapter_kind is not None or self.adapter_from is not None

    @model_validator(mode="after")
    def _virtual_tokens_are_used(self) -> Self:
        if self.adapter not in VIRTUAL:
            self._refuse(("virtual_tokens",), f"adapter is none of {', '.join(VIRTUAL)}")
        return self

    @model_validator(mode="after")
    def _given_adapter(self) -> Self:
        if self.adapter_from is not None and self.adapter_kind is not None:
            key = "adapter" if self.adapter else "lora_rank"
            raise ValueError(f"{key} has no effect with adapter_from, which determines the adapter")
        if self.adapter_from is None:
            self._refuse(("prior",), "adapter_from names no adapter to stay near")
        if self.prior is None:
            self._refuse(("prior_labels",), "there is no prior")
        return self


class LiveReferenceConfig(PolicyConfig, frozen=True):
    """Methods that keep the policy near a reference."""

    reference: str = Field(
        "frozen", description="frozen (copy of the starting weights), adapter_off (with LoRA), or a model."
    )
    reference_sync_steps: int | None = Field(
        None,
        ge=1,
        description="Updates between moves of a frozen reference towards the policy (TR-DPO); default: no moves.",
    )
    reference_mixup: float = Field(
        0.6, gt=0, le=1, description="How far the reference moves towards the policy each time; 1 copies the policy."
    )

    @property
    def referenced(self) -> LiveReferenceConfig:
        return self

    @field_validator("reference")
    @classmethod
    def _reference(cls, value: str) -> str:
        matches = get_close_matches(value, REFERENCES, n=1, cutoff=0.7)
        if matches and value not in REFERENCES and not Path(value).exists():
            raise ValueError(f"it is neither {', '.join(REFERENCES)} nor a model (did you mean {matches[0]}?)")
        return value

    @model_validator(mode="after")
    def _reference_parts(self) -> Self:
        if self.reference == "adapter_off" and not self.has_new_adapter:
            raise ValueError("reference adapter_off needs an adapter to switch off: set lora_rank or adapter")
        if self.reference_sync_steps is None:
            self._refuse(("reference_mixup",), "reference_sync_steps is not set")
        elif self.reference != "frozen" or self.has_new_adapter:
            kind = self.reference if self.reference != "frozen" else "the model with its new adapter off"
            raise ValueError(
                f"reference_sync_steps needs a frozen copy of all weights that can move; the reference is {kind}"
            )
        return self


class ReferenceConfig(LiveReferenceConfig, frozen=True):
    """Methods on data known beforehand, so the reference's log-probs can be cached."""

    reference: str = Field(
        "frozen",
        description="frozen (copy of the starting weights), cached (their log-probs on disk), adapter_off, or a model.",
    )
    reference_cache: str | None = Field(
        None, description="Folder of cached reference log-probs, which runs can share; default: inside the run folder."
    )

    @property
    def cacheable(self) -> ReferenceConfig:
        return self

    @model_validator(mode="after")
    def _cache_parts(self) -> Self:
        if self.reference != "cached":
            self._refuse(("reference_cache",), f"the reference is {self.reference}, not cached")
        return self


class BetaConfig(ReferenceConfig, frozen=True):
    """Methods with one objective and a reference, with strength ``beta``."""

    beta: float = Field(0.1, gt=0, description="Strength of the pull to the reference; larger stays closer to it.")


class ConstrainedConfig(ConstraintSettings, ReferenceConfig, frozen=True):
    """Methods on data known beforehand, whose policy may be constrained."""

    @property
    def constrained(self) -> ConstrainedConfig | None:
        return self if self.constraint is not None else None

    @model_validator(mode="after")
    def _constraint_parts(self) -> Self:
        needed = CONSTRAINT_NEEDS.get(self.constraint or "")
        others = [key for key in CONSTRAINT_NEEDS.values() if key != needed]
        if self.constraint is None:
            self._refuse(
                ("constraint_bound", "constraint_weight", "constraint_dual_lr", *others), "there is no constraint"
            )
            return self
        self._refuse(others, f"the constraint is {self.constraint}")
        if (self.constraint_weight is None) == (self.constraint_dual_lr is None):
            raise ValueError(
                "constraint needs exactly one of constraint_weight (a penalty) and constraint_dual_lr (a multiplier)"
            )
        if needed and getattr(self, needed) is None:
            raise ValueError(f"constraint {self.constraint} needs {needed}")
        if not needed and ":" not in self.constraint:
            names = ", ".join(CONSTRAINT_NEEDS)
            raise ValueError(
                f"constraint cannot be {self.constraint!r}; choose one of {names}, module:function or file.py:function"
            )
        return self


class OnlineConfig(RolloutSettings, LiveReferenceConfig, frozen=True):
    """Methods that learn from rewards of the policy's own answers; only the prompts of the data are used."""

    batch_size: int = Field(64, ge=1, description="Prompts per iteration.")
    sample_prompts: int = Field(8, ge=0, description="Held-out prompts whose answers are saved at each evaluation.")
    sample_tokens: int = Field(64, ge=1, description="Longest answer, in tokens.")  # pyright: ignore[reportIncompatibleVariableOverride] - prompts alone imply no length

    @property
    def rollouts(self) -> OnlineConfig:
        return self

    @property
    def penalty(self) -> PenaltyConfig | None:
        """Settings of a KL penalty in the reward; None if the pull to the reference is a term of the loss."""
        return None

    @model_validator(mode="after")
    def _online_parts(self) -> Self:
        if self.reference == "cached":
            raise ValueError("reference cannot be cached: the answers are not known beforehand")
        if self.adapter_from is not None:
            raise ValueError(
                "adapter_from starts from a policy other than the reference, and the KL penalty would pull it back: "
                "give the adapter as the model, which is then the reference"
            )
        if self.iterations is not None:
            self._refuse(("epochs",), "iterations sets the length of the run")
        if self.batch_size < self.minibatches:
            raise ValueError(
                f"{self.minibatches} minibatches need at least as many prompts, and batch_size is {self.batch_size}"
            )
        if self.ppo_epochs * self.minibatches == 1:
            clips = [key for key in _CLIPS if key in type(self).model_fields]
            self._refuse(clips, "an iteration makes one update, at the policy that wrote its answers")
        return self


class PenaltyConfig(OnlineConfig, frozen=True):
    """Methods whose rewards include a KL penalty, whose strength may adapt."""

    kl_target: float | None = Field(
        None, gt=0, description="Adapt kl_coef so that the KL approaches this, in nats per answer."
    )
    kl_horizon: float = Field(
        10_000.0, gt=0, description="Answers over which kl_coef may change by a fifth; larger is slower."
    )

    @property
    def penalty(self) -> PenaltyConfig:
        return self

    @model_validator(mode="after")
    def _controller(self) -> Self:
        if self.kl_target is None:
            self._refuse(("kl_horizon",), "kl_target is not set")
        elif self.kl_coef == 0:
            raise ValueError("kl_target needs a kl_coef above 0 to start from")
        return self
