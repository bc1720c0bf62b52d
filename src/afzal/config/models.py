"""The settings of each method, with units, bounds and a sentence each."""

from __future__ import annotations

import re
import types
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

Method = Literal["sft", "dpo", "ipo", "kto", "prefer", "reward", "ppo", "rloo", "grpo", "reinforce"]
METHODS: tuple[str, ...] = get_args(Method)
AdapterKind = Literal["lora", "dora", "rslora", "ia3", "prefix", "prompt", "p_tuning"]
LOW_RANK: tuple[AdapterKind, ...] = ("lora", "dora", "rslora")
VIRTUAL: tuple[AdapterKind, ...] = ("prefix", "prompt", "p_tuning")
REFERENCES = ("frozen", "cached", "adapter_off")


def members(annotation: Any) -> set[Any]:
    """The plain types of an annotation: ``int | None`` gives {int, NoneType}; a Literal stays whole."""
    if get_origin(annotation) in (Union, types.UnionType):
        return set().union(*(members(a) for a in get_args(annotation)))
    return {annotation}


class Settings(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Any set of settings: frozen, and closed to unknown keys."""

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: Any) -> Any:
        if isinstance(value, bool) and bool not in members(cls.model_fields[info.field_name].annotation):
            raise PydanticCustomError("truth", "true and false are no numbers")
        return value

    def _refuse(self, keys: Iterable[str], because: str) -> None:
        """Settings that would be ignored must have their defaults."""
        for key in keys:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is without effect: {because}")


def _split_pairs(value: Any, example: str) -> Any:
    """``a=1,b=2`` as a mapping; anything but text as it is."""
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


def _split_names(value: Any) -> Any:
    """``a,b`` as a list; anything but text as it is."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _split_columns(value: Any) -> Any:
    return _split_pairs(value, "role=field,role=field, such as chosen=good,prompt=question")


def _split_arguments(value: Any) -> Any:
    found = _split_pairs(value, "name=value,name=value, such as beta=0.2")
    return {k: _number_or_text(v) for k, v in found.items()} if isinstance(found, dict) else found


Columns = Annotated[dict[str, str], BeforeValidator(_split_columns)]
Arguments = Annotated[dict[str, float | str], BeforeValidator(_split_arguments)]
Names = Annotated[list[str] | None, BeforeValidator(_split_names)]


class DataSettings(Settings, frozen=True, title="Data"):
    data: str = Field(description="Training data: a file, a folder or a hub id; the format is detected.")
    eval_data: str | None = Field(None, description="Held-out data; without it, a share of the training data is kept.")
    eval_fraction: float = Field(
        0.1, ge=0, lt=1, description="Share of the prompts held out when there is no eval_data; 0 holds out none."
    )
    columns: Columns = Field({}, description="Which field is what, as chosen=good,prompt=question.")
    data_format: str | None = Field(None, description="Name of the data's format, when detection is to be overruled.")
    axis: str | None = Field(None, description="Keep only the opinions on this axis, such as safer.")
    skip_bad: bool = Field(False, description="Leave out and list damaged rows instead of stopping at the first.")
    clean: bool = Field(
        True, description="Leave out exact repeats and answers compared with themselves, and list them in losses.jsonl."
    )
    chat_template: str | None = Field(
        None, description="Jinja file (or text) in place of the tokenizer's own chat template."
    )
    max_tokens: int = Field(1024, ge=2, description="Longest prompt + response, in tokens; longer ones are cut.")
    eos_token: str | None = Field(None, description="Token that ends a response, when not the tokenizer's own EOS.")


class ModelSettings(Settings, frozen=True, title="Model"):
    model: str = Field(description="The model to start from: a folder or a hub id.")
    dtype: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="Number format of the forward pass; weights and sums stay fp32. auto is bf16 on a GPU that has it.",
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$", description="auto, cpu, cuda, cuda:1 or mps.")
    sharing: Literal["auto", "shared", "unshared"] = Field(
        "auto", description="Compute a prompt once for all its responses (auto: where a probe shows it to be exact)."
    )
    gradient_checkpointing: bool | None = Field(
        None,
        description="Recompute activations in the backward pass: less memory, a third more work; "
        "default: only when the memory that is free would not do.",
    )
    compile: bool = Field(
        False,
        description="Compile feed-forward layers and norms (torch.compile): the first update takes a minute more; "
        "pays in long runs on a GPU.",
    )
    adapter: AdapterKind | None = Field(
        None, description="Train an adapter of this kind, not all weights; lora_rank alone means lora."
    )
    lora_rank: int | None = Field(
        None, ge=1, description="Rank of lora, dora or rslora; default 8 where adapter names one of them."
    )
    lora_alpha: float | None = Field(
        None, gt=0, description="Scale: alpha / rank, default 2 x rank; with rslora alpha / sqrt(rank), default 8."
    )
    lora_targets: Names = Field(
        None, description="Modules that get an adapter, as q_proj,v_proj; default: every linear layer of the blocks."
    )


class WriterSettings(Settings, frozen=True, title="Model"):
    virtual_tokens: int | None = Field(
        None, ge=1, description="Virtual tokens of prefix, prompt or p_tuning before every row; default 20."
    )
    quantize: Literal["4bit"] | None = Field(
        None, description="Hold the base model's linear layers in 4 bits under an adapter (QLoRA; needs bitsandbytes)."
    )


class OptimisationSettings(Settings, frozen=True, title="Optimisation"):
    batch_size: int = Field(64, ge=1, description="Items per update.")
    tokens_per_forward: int = Field(
        8192, ge=2, description="Tokens per forward pass; an update is cut into as many passes as it takes."
    )
    epochs: float = Field(1.0, gt=0, description="Passes over the training data.")
    max_steps: int | None = Field(None, ge=1, description="Stop after this many updates, even inside the epochs.")
    lr: float = Field(1e-6, gt=0, description="Peak learning rate; larger by default with an adapter.")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="Course of the learning rate after the warm-up; linear and cosine end at 0."
    )
    warmup: float = Field(0.1, ge=0, description="Linear warm-up: a share of the updates if below 1, else updates.")
    optimizer: Literal["adamw", "rmsprop"] = Field("adamw", description="AdamW, or RMSprop as in the DPO paper.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay: decoupled in AdamW, an L2 term in RMSprop.")
    max_grad_norm: float = Field(1.0, ge=0, description="Clip the gradient to this Euclidean norm; 0 never clips.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW: decay of the gradient's mean.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW: decay of the gradient's square.")
    adam_eps: float = Field(1e-8, gt=0, description="Added to the optimizer's denominator.")


class EvaluationSettings(Settings, frozen=True, title="Evaluation"):
    eval_every_steps: int | None = Field(None, ge=1, description="Updates between evaluations; default 10 per run.")
    early_stop_patience: int | None = Field(
        None, ge=1, description="Stop after this many evaluations in a row without a lower held-out loss."
    )


class SampleSettings(Settings, frozen=True, title="Evaluation"):
    sample_prompts: int = Field(8, ge=0, description="Held-out prompts to answer at each evaluation.")
    sample_tokens: int = Field(64, ge=1, description="Longest sampled answer, in tokens.")
    sample_temperature: float = Field(1.0, ge=0, description="Temperature of the sampled answers; 0 is greedy.")


class RunSettings(Settings, frozen=True, title="Run"):
    out: str = Field("", description="Run folder: model, metrics, samples, report; default runs/METHOD-DATA.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the order, the split, the adapters and the samples.")
    log_every_steps: int = Field(1, ge=1, description="Updates between lines of metrics.jsonl.")
    save_every_steps: int | None = Field(
        None, ge=1, description="Updates between checkpoints; default: when stopped by a signal."
    )
    keep_checkpoints: int = Field(2, ge=1, description="Checkpoints to keep; older ones are deleted.")


_USUAL_RANK = 8
_USUAL_VIRTUAL_TOKENS = 20
# Times the learning rate of all weights; 10 for low-rank adapters
_LR_FACTOR: dict[AdapterKind | None, int] = {"ia3": 100, "prefix": 1000, "prompt": 1000, "p_tuning": 1000}


class TrainConfig(RunSettings, EvaluationSettings, OptimisationSettings, ModelSettings, DataSettings, frozen=True):
    """What every training method has; use the class of the method, or :func:`make`."""

    method: Method = Field(
        description="What to train: sft, dpo, ipo, kto, reward, ppo, rloo, grpo, reinforce, or prefer."
    )

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        """Defaults that hang on other settings."""
        if not isinstance(given, dict):
            return given
        filled = {"method": cls.model_fields["method"].default, **given}
        kind = filled.get("adapter")
        if kind in LOW_RANK and filled.get("lora_rank") is None:
            filled["lora_rank"] = _USUAL_RANK
        if kind in VIRTUAL and "virtual_tokens" in cls.model_fields and filled.get("virtual_tokens") is None:
            filled["virtual_tokens"] = _USUAL_VIRTUAL_TOKENS
        if kind is not None or filled.get("lora_rank") is not None:
            filled.setdefault("lr", float(f"{_LR_FACTOR.get(kind, 10) * cls.model_fields['lr'].default:g}"))
        if filled.get("eval_data") is not None:
            filled.setdefault("eval_fraction", 0.0)
        if isinstance(data := filled.get("data"), str) and not filled.get("out"):
            filled["out"] = f"runs/{filled['method']}-{re.sub(r'[.].*', '', Path(data).name) or 'data'}"
        return filled

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        """A setting that would be ignored is an error."""
        if self.eval_data is not None and self.eval_fraction > 0:
            raise ValueError("eval_fraction is without effect beside eval_data: leave one of them out")
        if self.eval_data is None and self.eval_fraction == 0:
            self._refuse(("eval_every_steps", "early_stop_patience"), "nothing is held out (eval_fraction is 0)")
        kind = self.adapter_kind
        if self.adapter is not None and kind not in LOW_RANK:
            self._refuse(("lora_rank", "lora_alpha", "lora_targets"), f"the adapter is {kind}")
        elif kind is None:
            self._refuse(("lora_alpha", "lora_targets"), "lora_rank is not set")
        if self.optimizer != "adamw":
            self._refuse(("adam_beta1", "adam_beta2"), f"the optimizer is {self.optimizer}")
        return self

    @property
    def adapter_kind(self) -> AdapterKind | None:
        """The kind of the fresh adapter; None without one."""
        return self.adapter or ("lora" if self.lora_rank is not None else None)


class PolicyConfig(WriterSettings, SampleSettings, TrainConfig, frozen=True):
    """Methods that train a model which writes."""

    @model_validator(mode="after")
    def _virtual_tokens_are_used(self) -> Self:
        if self.adapter not in VIRTUAL:
            self._refuse(("virtual_tokens",), f"adapter is none of {', '.join(VIRTUAL)}")
        return self


class SFTConfig(PolicyConfig, frozen=True):
    """Supervised fine-tuning on the good responses."""

    method: Literal["sft"] = Field("sft", description="Supervised fine-tuning.")
    lr: float = Field(2e-5, gt=0, description="Peak learning rate; larger by default with an adapter.")


class LiveReferenceConfig(PolicyConfig, frozen=True):
    """Methods that hold the policy near a reference."""

    reference: str = Field(
        "frozen", description="frozen (copy of the starting weights), adapter_off (with LoRA), or a model."
    )
    reference_sync_steps: int | None = Field(
        None,
        ge=1,
        description="Let a frozen reference follow the policy every so many updates (TR-DPO); default never.",
    )
    reference_mixup: float = Field(
        0.6, gt=0, le=1, description="How far the reference moves towards the policy each time; 1 copies it."
    )

    @field_validator("reference")
    @classmethod
    def _reference(cls, value: str) -> str:
        near = get_close_matches(value, REFERENCES, n=1, cutoff=0.7)
        if near and value not in REFERENCES and not Path(value).exists():
            raise ValueError(f"it is neither {', '.join(REFERENCES)} nor a model (did you mean {near[0]}?)")
        return value

    @model_validator(mode="after")
    def _reference_parts(self) -> Self:
        if self.reference == "adapter_off" and self.adapter_kind is None:
            raise ValueError("reference adapter_off needs an adapter to switch off: set lora_rank or adapter")
        if self.reference_sync_steps is None:
            self._refuse(("reference_mixup",), "reference_sync_steps is not set")
        elif self.reference != "frozen" or self.adapter_kind is not None:
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


class ConstraintSettings(Settings, frozen=True, title="Constraint"):
    constraint: str | None = Field(
        None,
        description="A cost to be kept below a bound: unsafe_mass, unsafe_likelihood, black_box, or module:function.",
    )
    constraint_bound: float = Field(0.0, description="The bound of the cost.")
    constraint_weight: float | None = Field(None, gt=0, description="Hold it by a penalty: weight x (cost - bound).")
    constraint_dual_lr: float | None = Field(
        None, gt=0, description="Hold it by a Lagrange multiplier that grows by this x (cost - bound) per update."
    )
    constraint_tokens: Names = Field(
        None, description="unsafe_mass: tokens whose probability is the cost, as text, separated by commas."
    )
    constraint_data: str | None = Field(
        None, description="unsafe_likelihood: a file of prompts with completions that are known to be unsafe."
    )
    constraint_score: str | None = Field(
        None, description="black_box: module:function from a prompt and an answer to a number; larger is worse."
    )


# What each ready constraint must be given, and only it.
CONSTRAINT_NEEDS = {
    "unsafe_mass": "constraint_tokens",
    "unsafe_likelihood": "constraint_data",
    "black_box": "constraint_score",
}


class PreferConfig(ConstraintSettings, ReferenceConfig, frozen=True):
    """Any objective of the registry, a weighted sum of them, or one of your own."""

    method: Literal["prefer"] = Field("prefer", description="Any objective.")
    objective: str = Field(
        "dpo", description="A name (see afzal objectives), a sum as 0.8*dpo+0.2*bco_pair+1.0*nll, or module:function."
    )
    objective_arg: Arguments = Field(
        {}, description="Parameters of the objective, as beta=0.2; those of one term of a sum as bco_pair.beta=0.05."
    )
    soft_labels: Literal["keep", "majority"] = Field(
        "keep", description="majority turns a label's probability into certainty, for objectives that need it."
    )
    learn: Names = Field(None, description="Parameters of the objective to learn, such as nu (ties).")
    learned_lr: float = Field(1e-2, gt=0, description="Peak learning rate of the parameters named by learn.")

    @model_validator(mode="after")
    def _constraint_parts(self) -> Self:
        if self.learn is None:
            self._refuse(("learned_lr",), "learn names no parameter")
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
            raise ValueError(f"constraint cannot be {self.constraint!r}; choose one of {known}, or module:function")
        return self


class KTOConfig(BetaConfig, frozen=True):
    """Kahneman-Tversky optimisation on single responses labelled good or bad."""

    method: Literal["kto"] = Field("kto", description="Kahneman-Tversky optimisation.")
    lr: float = Field(5e-6, gt=0, description="Peak learning rate; larger by default with an adapter.")
    desirable_weight: float = Field(1.0, gt=0, description="Weight of good responses in the loss.")
    undesirable_weight: float = Field(1.0, gt=0, description="Weight of bad responses in the loss.")


class RewardConfig(TrainConfig, frozen=True):
    """A reward model on pairs, ties, soft labels, strengths and rankings."""

    method: Literal["reward"] = Field("reward", description="Reward model.")
    lr: float = Field(1e-5, gt=0, description="Peak learning rate; larger by default with an adapter.")
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


class GenerateConfig(Settings, frozen=True):
    """Answers of a model to one prompt or to a file of prompts."""

    model: str = Field(description="The model: a run folder, a model folder or a hub id.")
    prompt: str | None = Field(None, description="One prompt, as text.")
    prompts: str | None = Field(None, description="A file of prompts, in any format that training data may have.")
    n: int = Field(1, ge=1, description="Answers per prompt.")
    max_new_tokens: int = Field(256, ge=1, description="Longest answer, in tokens.")
    min_new_tokens: int = Field(0, ge=0, description="Tokens before an answer may end.")
    temperature: float = Field(1.0, ge=0, description="Temperature; 0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Sample from the likeliest tokens of this total probability.")
    top_k: int | None = Field(None, ge=1, description="Sample from this many likeliest tokens.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the sampling.")
    batch_size: int = Field(
        64, ge=1, description="Answers sampled at a time; a matter of speed and memory, not of what is said."
    )
    dtype: Literal["fp32", "bf16"] = Field("fp32", description="Number format of the weights.")
    engine: Literal["auto", "stock", "vllm"] = Field(
        "auto",
        description="auto reads a prompt once for all its answers where that is exact; stock always uses generate().",
    )
    out: str | None = Field(None, description="JSONL file for the answers; default: print them.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.prompt is None) == (self.prompts is None):
            raise ValueError("give either prompt (a text) or prompts (a file)")
        if self.temperature == 0 and (self.n > 1 or self.top_p < 1 or self.top_k is not None):
            raise ValueError("n, top_p and top_k are without effect at temperature 0")
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError("min_new_tokens is above max_new_tokens")
        return self


class ScoreConfig(Settings, frozen=True):
    """Scores of the responses of a file."""

    model: str | None = Field(None, description="The reward model: a run folder, a model folder or a hub id.")
    policy: str | None = Field(None, description="In its place, a policy, scored by beta x (log-prob - reference's).")
    reference: str | None = Field(None, description="The policy's reference.")
    beta: float = Field(0.1, gt=0, description="The policy's beta.")
    data: str = Field(description="Responses to score, in any format that training data may have.")
    columns: Columns = Field({}, description="Which field is what, as chosen=good,prompt=question.")
    data_format: str | None = Field(None, description="Name of the data's format, when detection is to be overruled.")
    max_tokens: int = Field(1024, ge=2, description="Longest prompt + response, in tokens; longer ones are cut.")
    tokens_per_forward: int = Field(8192, ge=2, description="Tokens per forward pass.")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$", description="auto, cpu, cuda, cuda:1 or mps.")
    out: str | None = Field(None, description="JSONL file for the scores, one line per response.")

    @model_validator(mode="after")
    def _one_scorer(self) -> Self:
        if (self.model is None) == (self.policy is None):
            raise ValueError("give either model (a reward model) or policy and reference")
        if (self.policy is None) != (self.reference is None):
            raise ValueError("policy and reference belong together")
        if self.policy is None and self.beta != type(self).model_fields["beta"].default:
            raise ValueError("beta is without effect on a reward model")
        return self


SECTIONS: tuple[type[Settings], ...] = (
    DataSettings,
    ModelSettings,
    WriterSettings,
    OptimisationSettings,
    ConstraintSettings,
    EvaluationSettings,
    SampleSettings,
    RunSettings,
)


def section(kind: type[Settings], key: str) -> str:
    """The heading a setting stands under: Data, Model, Optimisation, Objective, Constraint, Evaluation or Run; or one
    of a command's own, which is the title of the part of ``kind`` that has the setting."""
    own = (part for part in kind.__mro__ if part.__bases__ == (Settings,))
    found = next((s for s in (*SECTIONS, *own) if key in s.model_fields and issubclass(kind, s)), None)
    return found.model_config.get("title") or "Objective" if found else "Objective"
