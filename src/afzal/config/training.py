"""What every method that trains has, and what those have that train a policy."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, field_validator, model_validator

from .base import Settings
from .online import RolloutSettings
from .scale import MemorySettings
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
# Times the learning rate of all weights; 10 for low-rank adapters
_LR_FACTOR: dict[AdapterKind | None, int] = {"ia3": 100, "prefix": 1000, "prompt": 1000, "p_tuning": 1000}


def fill_adapter(filled: dict[str, Any], kind_of_settings: type[Settings]) -> None:
    """The rank, the virtual tokens and the learning rate that an adapter has unless they are given."""
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
    """What every training method has; use the class of the method, or :func:`make`."""

    method: str = Field(description="What to train: the name of a method, such as sft, dpo or ppo.")

    # What a method can do, as the settings that say how: None where it cannot. The rooms that train ask these and never
    # which method it is, so that a new method is a class and nothing else.

    @property
    def policy(self) -> PolicyConfig | None:
        """Of a model that writes; None for one that scores."""
        return None

    @property
    def referenced(self) -> LiveReferenceConfig | None:
        """Of a policy that may be held near a reference."""
        return None

    @property
    def cacheable(self) -> ReferenceConfig | None:
        """Of a reference whose log-probs may be kept, since the data are known beforehand."""
        return None

    @property
    def rollouts(self) -> OnlineConfig | None:
        """Of a policy that learns from rewards of its own answers."""
        return None

    @property
    def critic(self) -> ValueSettings | None:
        """Of a value model that trains beside the policy."""
        return None

    @property
    def chosen(self) -> ObjectiveSettings | None:
        """Of a method whose objective is a setting."""
        return None

    @property
    def adaptation(self) -> AdaptationSettings | None:
        """Of an adapter that is learned for what a few steps on a new task make of it."""
        return None

    @property
    def constrained(self) -> ConstrainedConfig | None:
        """Of constraints on the policy, beside its objective."""
        return None

    @property
    def scorer(self) -> ScorerSettings | None:
        """Of a model that scores answers: a reward model."""
        return None

    @property
    def demonstrated(self) -> DemonstrationSettings | None:
        """Of a reward that is inferred from demonstrations, against samples."""
        return None

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        """Defaults that depend on other settings."""
        if not isinstance(given, dict):
            return given
        filled = {"method": cls.model_fields["method"].default, **given}
        fill_adapter(filled, cls)
        if filled.get("eval_data") is not None:
            filled.setdefault("eval_fraction", 0.0)
        if isinstance(data := filled.get("data"), str) and not filled.get("out"):
            filled["out"] = f"runs/{filled['method']}-{re.sub(r'[.].*', '', Path(data).name) or 'data'}"
        return filled

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        """A setting that would be ignored is an error."""
        if self.eval_data is not None and self.eval_fraction > 0:
            raise ValueError("eval_fraction has no effect beside eval_data: leave one of them out")
        if self.eval_data is None and self.eval_fraction == 0:
            self._refuse(("eval_every_steps", "early_stop_patience"), "nothing is held out (eval_fraction is 0)")
        self._refuse_adapter_parts()
        self._refuse_hub_parts()
        if self.optimizer != "adamw":
            self._refuse(("adam_beta1", "adam_beta2"), f"the optimizer is {self.optimizer}")
        if self.optimizer == "sgd":
            self._refuse(("adam_eps",), "the optimizer is sgd")
        if self.offload == "reference" and getattr(self, "reference", "cached") == "cached":
            raise ValueError("offload reference has no effect: there is no reference whose weights are held")
        if self.activation_checkpointing != "auto" and self.tokens_per_forward is not None:
            self._refuse(("memory_gb",), "neither activation_checkpointing nor tokens_per_forward is auto")
        return self


class PolicyConfig(WriterSettings, SampleSettings, TrainConfig, frozen=True):
    """Methods that train a model which writes."""

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
            given = "adapter" if self.adapter else "lora_rank"
            raise ValueError(f"{given} has no effect beside adapter_from, which says what the adapter is")
        if self.adapter_from is None:
            self._refuse(("prior",), "adapter_from names no adapter to stay near")
        if self.prior is None:
            self._refuse(("prior_labels",), "there is no prior")
        return self


class LiveReferenceConfig(PolicyConfig, frozen=True):
    """Methods that hold the policy near a reference."""

    reference: str = Field(
        "frozen", description="frozen (copy of the starting weights), adapter_off (with LoRA), or a model."
    )
    reference_sync_steps: int | None = Field(
        None,
        ge=1,
        description="Updates between two moves of a frozen reference towards the policy (TR-DPO); default: no moves.",
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
        near = get_close_matches(value, REFERENCES, n=1, cutoff=0.7)
        if near and value not in REFERENCES and not Path(value).exists():
            raise ValueError(f"it is neither {', '.join(REFERENCES)} nor a model (did you mean {near[0]}?)")
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
                f"reference_sync_steps needs a frozen copy of all weights that can follow; the reference is {kind}"
            )
        return self


class ReferenceConfig(LiveReferenceConfig, frozen=True):
    """Methods on data that is known beforehand, so that the reference's log-probs may be kept."""

    reference: str = Field(
        "frozen",
        description="frozen (copy of the starting weights), cached (their log-probs on disk), adapter_off, or a model.",
    )
    reference_cache: str | None = Field(
        None, description="Folder of cached reference log-probs, to be shared by runs; default: inside the run folder."
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
    """Methods of one objective with a reference, whose strength is ``beta``."""

    beta: float = Field(0.1, gt=0, description="Strength of the pull to the reference; larger stays nearer to it.")


class ConstrainedConfig(ConstraintSettings, ReferenceConfig, frozen=True):
    """Methods on data that is known beforehand, whose policy may be held to a constraint."""

    @property
    def constrained(self) -> ConstrainedConfig | None:
        return self if self.constraint is not None else None

    @model_validator(mode="after")
    def _constraint_parts(self) -> Self:
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


class OnlineConfig(RolloutSettings, LiveReferenceConfig, frozen=True):
    """Methods that learn from the rewards of the policy's own answers; of the data only the prompts are used."""

    batch_size: int = Field(64, ge=1, description="Prompts per iteration.")
    sample_prompts: int = Field(8, ge=0, description="Held-out prompts whose answers are kept at each evaluation.")
    sample_tokens: int = Field(64, ge=1, description="Longest answer, in tokens.")  # pyright: ignore[reportIncompatibleVariableOverride] - prompts alone ask for no length

    @property
    def rollouts(self) -> OnlineConfig:
        return self

    @property
    def penalty(self) -> PenaltyConfig | None:
        """Of a KL penalty that stands in the reward; None where the pull to the reference is a term of the loss."""
        return None

    @model_validator(mode="after")
    def _online_parts(self) -> Self:
        if self.reference == "cached":
            raise ValueError("reference cannot be cached: the answers are not known before they are written")
        if self.adapter_from is not None:
            raise ValueError(
                "adapter_from is another policy than the reference, and the KL penalty would pull it back: "
                "name the adapter as the model, which is then the reference"
            )
        if self.iterations is not None:
            self._refuse(("epochs",), "iterations says how long the run is")
        if self.batch_size < self.minibatches:
            raise ValueError(
                f"{self.minibatches} minibatches need as many prompts, and batch_size is {self.batch_size}"
            )
        if self.ppo_epochs * self.minibatches == 1:
            clips = [key for key in _CLIPS if key in type(self).model_fields]
            self._refuse(clips, "an iteration makes one update, by the policy that wrote its answers")
        return self


class PenaltyConfig(OnlineConfig, frozen=True):
    """Methods whose rewards hold the KL penalty, whose strength may move."""

    kl_target: float | None = Field(
        None, gt=0, description="Move kl_coef towards the strength that gives this KL, in nats per answer."
    )
    kl_horizon: float = Field(
        10_000.0, gt=0, description="Answers in which kl_coef may change by a fifth; larger is slower."
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
