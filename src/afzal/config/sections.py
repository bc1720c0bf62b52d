"""The training settings by topic, each with units, bounds and a sentence."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Literal

from pydantic import Field, field_validator

from .base import Columns, Names, ObjectiveArguments, ObjectiveName, Settings
from .memory import TOKENS_PER_FORWARD, MemorySettings, Tokens

AdapterKind = Literal["lora", "dora", "rslora", "ia3", "prefix", "prompt", "p_tuning"]
LOW_RANK: tuple[AdapterKind, ...] = ("lora", "dora", "rslora")
VIRTUAL: tuple[AdapterKind, ...] = ("prefix", "prompt", "p_tuning")


class DataSettings(Settings, frozen=True, title="Data"):
    """Training data, held-out data, and how rows become tokens."""

    data: str = Field(description="Training data: a file, a folder or a hub id; the format is detected.")
    eval_data: str | None = Field(
        None, description="Held-out data; default: a share of the training data, see eval_fraction."
    )
    eval_fraction: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of the items held out if there is no eval_data; no prompt is in both parts. 0: none.",
    )
    columns: Columns = Field({}, description="Field names by role, as chosen=good,prompt=question.")
    data_format: str | None = Field(None, description="Name of the data's format; overrides detection.")
    axis: str | None = Field(None, description="Keep only the votes on this axis, such as safer.")
    task: str = Field(
        "task", description="Field that names a row's task or group; held-out accuracy is reported per task."
    )
    skip_bad: bool = Field(False, description="Skip and list damaged rows instead of stopping at the first.")
    clean: bool = Field(
        True,
        description="Drop exact duplicates and answers compared with themselves, and list them in dropped.jsonl.",
    )
    chat_template: str | None = Field(
        None, description="Jinja file (or text) to use instead of the tokenizer's chat template."
    )
    max_tokens: int = Field(1024, ge=2, description="Longest prompt + response, in tokens; longer ones are cut.")
    eos_token: str | None = Field(None, description="Token that ends a response, if not the tokenizer's EOS.")


class ModelSettings(Settings, frozen=True, title="Model"):
    """The model, its device and number format, and the adapter."""

    model: str = Field(description="The model to start from: a folder or a hub id.")
    dtype: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="Number format of the forward pass; weights and sums stay fp32. auto is bf16 on a GPU that "
        "supports it, and on a CPU if a short trial finds it faster and the model's log-probs agree.",
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$", description="auto, cpu, cuda, cuda:1 or mps.")
    sharing: Literal["auto", "shared", "unshared"] = Field(
        "auto", description="Compute a prompt once for all its responses (auto: if a probe shows that this is exact)."
    )
    compile: bool = Field(
        False,
        description="Compile whole blocks on a GPU, feed-forward layers and norms elsewhere (torch.compile). The first "
        "update takes minutes longer; worthwhile for long runs on a GPU.",
    )
    adapter: AdapterKind | None = Field(
        None, description="Train an adapter of this kind instead of all weights; lora_rank alone means lora."
    )
    lora_rank: int | None = Field(
        None, ge=1, description="Rank of lora, dora or rslora; default 8 if adapter names one of them."
    )
    lora_alpha: float | None = Field(
        None, gt=0, description="Scale: alpha / rank, default 2 x rank; with rslora alpha / sqrt(rank), default 8."
    )
    lora_targets: Names = Field(
        None,
        description="Modules that get an adapter, such as q_proj,v_proj; default: every linear layer of the blocks.",
    )

    @property
    def adapter_kind(self) -> AdapterKind | None:
        """The kind of the new adapter; None if there is none."""
        return self.adapter or ("lora" if self.lora_rank is not None else None)

    @property
    def has_new_adapter(self) -> bool:
        """Whether an adapter is added, new or from a folder; the reference is then the model without it."""
        return self.adapter_kind is not None

    def _refuse_adapter_parts(self) -> None:
        """Refuse settings of an adapter that does not exist."""
        kind = self.adapter_kind
        if self.adapter is not None and kind not in LOW_RANK:
            self._refuse(("lora_rank", "lora_alpha", "lora_targets"), f"the adapter is {kind}")
        elif kind is None:
            self._refuse(("lora_alpha", "lora_targets"), "lora_rank is not set")


class WriterSettings(Settings, frozen=True, title="Model"):
    """Settings that only models that write have."""

    virtual_tokens: int | None = Field(
        None, ge=1, description="Virtual tokens that prefix, prompt or p_tuning puts before every row; default 20."
    )
    adapter_from: str | None = Field(
        None,
        description="Start from the adapter in this folder; the reference is the model without it.",
    )
    prior: float | None = Field(
        None,
        gt=0,
        description="Keep the adapter near that of adapter_from (L2-SP): the weight of half the squared distance.",
    )
    prior_labels: int | None = Field(
        None,
        ge=1,
        description="Anneal the prior with the amount of data: its weight is prior x this / training items; default: "
        "the weight does not depend on the number of items.",
    )
    quantize: Literal["4bit"] | None = Field(
        None, description="Hold the base model's linear layers in 4 bits under an adapter (QLoRA; needs bitsandbytes)."
    )
    train_towers: bool = Field(
        False,
        description="Also train the parts that read images and sounds; otherwise they are frozen and get no adapter.",
    )


class OptimisationSettings(Settings, frozen=True, title="Optimisation"):
    """The size and number of updates, and the optimizer."""

    batch_size: int = Field(64, ge=1, description="Items per update.")
    tokens_per_forward: Tokens = Field(
        TOKENS_PER_FORWARD,
        ge=2,
        description="Tokens per forward pass; an update is split into as many passes as it needs. auto (null): as "
        "many as fit into memory.",
    )
    epochs: float = Field(1.0, gt=0, description="Passes over the training data.")
    max_steps: int | None = Field(
        None, ge=1, description="Stop after this many updates, even in the middle of an epoch."
    )
    lr: float = Field(1e-6, ge=0, description="Peak learning rate, 0 for none; larger by default with an adapter.")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="Learning rate after the warm-up; linear and cosine end at 0."
    )
    warmup: float = Field(
        0.1, ge=0, description="Linear warm-up: a share of the updates if below 1, else a number of updates."
    )
    optimizer: Literal["adamw", "rmsprop", "sgd"] = Field(
        "adamw", description="AdamW, RMSprop as in the DPO paper, or plain gradient descent."
    )
    weight_decay: float = Field(0.0, ge=0, description="Weight decay: decoupled in AdamW, an L2 term in RMSprop.")
    max_grad_norm: float = Field(
        1.0, ge=0, description="Clip the gradient to this Euclidean norm; 0 disables clipping."
    )
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW: decay of the gradient's mean.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW: decay of the gradient's square.")
    adam_eps: float = Field(1e-8, gt=0, description="Added to the optimizer's denominator.")

    @property
    def pass_tokens(self) -> int:
        """Tokens per forward pass until a number has been measured."""
        return self.tokens_per_forward or TOKENS_PER_FORWARD


class EvaluationSettings(Settings, frozen=True, title="Evaluation"):
    """When the held-out part is evaluated, and when that stops the run."""

    eval_every_steps: int | None = Field(None, ge=1, description="Updates between evaluations; default 10 per run.")
    early_stop_patience: int | None = Field(
        None,
        ge=1,
        description="Stop after this many evaluations in a row without a lower held-out loss; for methods that learn "
        "from rewards, without a higher objective (reward minus KL penalty).",
    )


class SampleSettings(Settings, frozen=True, title="Evaluation"):
    """Answers to held-out prompts during training."""

    sample_prompts: int = Field(
        32, ge=0, description="Held-out prompts to answer at each evaluation, for samples and for the KL to the start."
    )
    sample_tokens: int | None = Field(
        None, ge=1, description="Longest sampled answer, in tokens; default: the longest response of the data."
    )
    sample_temperature: float = Field(1.0, ge=0, description="Temperature of the sampled answers; 0 is greedy.")


class RunSettings(Settings, frozen=True, title="Run"):
    """The run's folder, its seed, and when it writes."""

    out: str = Field("", description="Run folder: model, metrics, samples, report; default runs/METHOD-DATA.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the data order, the split, the adapters and the samples.")
    log_every_steps: int = Field(1, ge=1, description="Updates between lines of metrics.jsonl.")
    save_every_steps: int | None = Field(
        None, ge=1, description="Updates between checkpoints, in addition to save_every_minutes; default: none."
    )
    save_every_minutes: float = Field(
        10.0,
        ge=0,
        description="Minutes between checkpoints, and so the most work that a killed run loses. 0: no timed ones.",
    )
    keep_checkpoints: int | None = Field(
        None,
        ge=1,
        description="Checkpoints to keep, also after the run; older ones are deleted, timed ones first. Default 2 "
        "during the run, none after it.",
    )
    save_dtype: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="Number format of the saved weights: auto is that of the model's files, and fp32 for adapters; "
        "fp32 keeps what bf16 would round away.",
    )
    report_to: Names = Field(
        None, description="Send the metrics to trackers as well: tensorboard, wandb, mlflow, trackio, or several."
    )

    @field_validator("report_to")
    @classmethod
    def _known_trackers(cls, value: list[str] | None) -> list[str] | None:
        from afzal.trackers import TRACKERS

        if value in (None, [], ["none"]):  # as transformers writes it
            return None
        for name in value:
            if name not in TRACKERS:
                matches = get_close_matches(name, TRACKERS, n=1)
                hint = f" (did you mean {matches[0]}?)" if matches else ""
                raise ValueError(f"there is no tracker {name!r}{hint}: choose from {', '.join(TRACKERS)}")
        return list(dict.fromkeys(value))


class HubSettings(Settings, frozen=True, title="Run"):
    """Where to upload the result."""

    push_to_hub: str | None = Field(
        None, description="Upload the finished model and its card to this hub repository, OWNER/NAME."
    )
    hub_public: bool = Field(False, description="Make the repository public if it is new; default: private.")

    def _refuse_hub_parts(self) -> None:
        """Refuse settings of an upload if nothing is uploaded."""
        if self.push_to_hub is None:
            self._refuse(("hub_public",), "push_to_hub is not set")


class ObjectiveSettings(Settings, frozen=True, title="Objective"):
    """The chosen objective, its learned parameters, and how it treats labels."""

    objective: ObjectiveName = "dpo"
    objective_arg: ObjectiveArguments = Field({})
    soft_labels: Literal["keep", "majority"] = Field(
        "keep", description="majority turns soft labels into hard ones, for objectives that need those."
    )
    learn: Names = Field(None, description="Parameters of the objective to learn, such as nu (ties).")
    learned_lr: float = Field(1e-2, gt=0, description="Peak learning rate of the parameters named by learn.")


class ScorerSettings(Settings, frozen=True, title="Objective"):
    """A reward model: its heads and its zero point."""

    heads: int = Field(
        1,
        ge=1,
        le=64,
        description="Heads on one trunk, each trained on its own bootstrap sample of the items; their spread shows how "
        "uncertain a score is.",
    )
    shift: Literal["none", "chosen"] = Field(
        "chosen",
        description="chosen: store the shift that gives the preferred responses a mean of 0 in config.json "
        "(reward_shift). none: no shift.",
    )

    @property
    def inferred_at(self) -> float | None:
        """The demonstrator's beta, for a reward inferred from demonstrations; else None."""
        return None


class DemonstrationSettings(Settings, frozen=True, title="Data"):
    """What demonstrations are compared with."""

    samples: str = Field(
        description="Answers sampled from the reference to the same prompts, several each, as afzal generate writes "
        "them."
    )


# The setting that each built-in constraint requires, and no other constraint accepts.
CONSTRAINT_NEEDS = {
    "unsafe_mass": "constraint_tokens",
    "unsafe_likelihood": "constraint_data",
    "black_box": "constraint_score",
}


class ConstraintSettings(Settings, frozen=True, title="Constraint"):
    """A cost in addition to the objective, and how its bound is enforced."""

    constraint: str | None = Field(
        None,
        description="A cost to keep below a bound: unsafe_mass, unsafe_likelihood, black_box, module:function or "
        "file.py:function.",
    )
    constraint_bound: float = Field(0.0, description="The bound on the cost.")
    constraint_weight: float | None = Field(
        None, gt=0, description="Enforce the bound by a penalty: weight x (cost - bound)."
    )
    constraint_dual_lr: float | None = Field(
        None, gt=0, description="Enforce it by a Lagrange multiplier that grows by this x (cost - bound) per update."
    )
    constraint_tokens: Names = Field(
        None, description="unsafe_mass: tokens whose probability is the cost, as text, separated by commas."
    )
    constraint_data: str | None = Field(
        None, description="unsafe_likelihood: a file of prompts with completions that are known to be unsafe."
    )
    constraint_score: str | None = Field(
        None, description="black_box: module:function or file.py:function of a prompt and an answer; larger is worse."
    )


SECTIONS: tuple[type[Settings], ...] = (
    DataSettings,
    ModelSettings,
    MemorySettings,
    WriterSettings,
    OptimisationSettings,
    ConstraintSettings,
    EvaluationSettings,
    SampleSettings,
    RunSettings,
)


def section(kind: type[Settings], key: str) -> str:
    """The heading of a setting: Data, Model, Optimisation, Objective, Constraint, Evaluation or Run; or a heading of
    the command's own, the title of the base class of ``kind`` that has the setting."""
    further = (base for base in kind.__mro__ if base.__bases__ == (Settings,))
    part = next((s for s in (*SECTIONS, *further) if key in s.model_fields and issubclass(kind, s)), None)
    return part.model_config.get("title") or "Objective" if part else "Objective"
