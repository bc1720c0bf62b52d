"""The settings of training by topic, with units, bounds and a sentence each."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Literal

from pydantic import Field, field_validator

from .base import Columns, Names, ObjectiveArguments, ObjectiveName, Settings
from .scale import TOKENS_PER_FORWARD, MemorySettings, Tokens

AdapterKind = Literal["lora", "dora", "rslora", "ia3", "prefix", "prompt", "p_tuning"]
LOW_RANK: tuple[AdapterKind, ...] = ("lora", "dora", "rslora")
VIRTUAL: tuple[AdapterKind, ...] = ("prefix", "prompt", "p_tuning")


class DataSettings(Settings, frozen=True, title="Data"):
    """What is trained on, what is held out, and how rows become tokens."""

    data: str = Field(description="Training data: a file, a folder or a hub id; the format is detected.")
    eval_data: str | None = Field(
        None, description="Held-out data; default: a share of the training data, see eval_fraction."
    )
    eval_fraction: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of the items held out when there is no eval_data; no prompt is on both sides. 0: none.",
    )
    columns: Columns = Field({}, description="Which field is what, as chosen=good,prompt=question.")
    data_format: str | None = Field(None, description="Name of the data's format, when detection is to be overruled.")
    axis: str | None = Field(None, description="Keep only the opinions on this axis, such as safer.")
    task: str = Field(
        "task", description="Field of the rows that names their task or group: held-out accuracy is given by task."
    )
    skip_bad: bool = Field(False, description="Leave out and list damaged rows instead of stopping at the first.")
    clean: bool = Field(
        True,
        description="Leave out exact repeats and answers compared with themselves, and list them in dropped.jsonl.",
    )
    chat_template: str | None = Field(
        None, description="Jinja file (or text) in place of the tokenizer's own chat template."
    )
    max_tokens: int = Field(1024, ge=2, description="Longest prompt + response, in tokens; longer ones are cut.")
    eos_token: str | None = Field(None, description="Token that ends a response, when not the tokenizer's own EOS.")


class ModelSettings(Settings, frozen=True, title="Model"):
    """What is trained, where and in which number format, and the adapter."""

    model: str = Field(description="The model to start from: a folder or a hub id.")
    dtype: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="Number format of the forward pass; weights and sums stay fp32. auto is bf16 on a GPU that has it.",
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$", description="auto, cpu, cuda, cuda:1 or mps.")
    sharing: Literal["auto", "shared", "unshared"] = Field(
        "auto", description="Compute a prompt once for all its responses (auto: where a probe shows it to be exact)."
    )
    compile: bool = Field(
        False,
        description="Compile whole blocks on a GPU, feed-forward layers and norms elsewhere (torch.compile): the first "
        "update takes minutes more; pays in long runs on a GPU.",
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

    @property
    def adapter_kind(self) -> AdapterKind | None:
        """The kind of the fresh adapter; None without one."""
        return self.adapter or ("lora" if self.lora_rank is not None else None)

    @property
    def has_new_adapter(self) -> bool:
        """Whether an adapter is put on the model, fresh or from a folder: the reference is the model without it."""
        return self.adapter_kind is not None

    def _refuse_adapter_parts(self) -> None:
        """Settings of an adapter that there is not must have their defaults."""
        kind = self.adapter_kind
        if self.adapter is not None and kind not in LOW_RANK:
            self._refuse(("lora_rank", "lora_alpha", "lora_targets"), f"the adapter is {kind}")
        elif kind is None:
            self._refuse(("lora_alpha", "lora_targets"), "lora_rank is not set")


class WriterSettings(Settings, frozen=True, title="Model"):
    """What only models that write can have."""

    virtual_tokens: int | None = Field(
        None, ge=1, description="Virtual tokens of prefix, prompt or p_tuning before every row; default 20."
    )
    adapter_from: str | None = Field(
        None,
        description="Begin with the adapter in this folder on the model, whose reference is the model without it.",
    )
    prior: float | None = Field(
        None,
        gt=0,
        description="Hold the adapter near the one of adapter_from: weight of half the squared distance (L2-SP).",
    )
    prior_labels: int | None = Field(
        None,
        ge=1,
        description="Anneal the prior with the data: its weight is prior x this / items of training; default: it is "
        "the same for any number of items.",
    )
    quantize: Literal["4bit"] | None = Field(
        None, description="Hold the base model's linear layers in 4 bits under an adapter (QLoRA; needs bitsandbytes)."
    )
    train_towers: bool = Field(
        False, description="Also train what reads images and sounds; otherwise it is frozen, and no adapter changes it."
    )


class OptimisationSettings(Settings, frozen=True, title="Optimisation"):
    """The size of an update, how many there are, and how the weights move."""

    batch_size: int = Field(64, ge=1, description="Items per update.")
    tokens_per_forward: Tokens = Field(
        TOKENS_PER_FORWARD,
        ge=2,
        description="Tokens per forward pass; an update is cut into as many passes as it takes. auto (null): as "
        "many as fit into memory.",
    )
    epochs: float = Field(1.0, gt=0, description="Passes over the training data.")
    max_steps: int | None = Field(None, ge=1, description="Stop after this many updates, even inside the epochs.")
    lr: float = Field(1e-6, ge=0, description="Peak learning rate, 0 for none; larger by default with an adapter.")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="Course of the learning rate after the warm-up; linear and cosine end at 0."
    )
    warmup: float = Field(0.1, ge=0, description="Linear warm-up: a share of the updates if below 1, else updates.")
    optimizer: Literal["adamw", "rmsprop", "sgd"] = Field(
        "adamw", description="AdamW, RMSprop as in the DPO paper, or plain gradient descent."
    )
    weight_decay: float = Field(0.0, ge=0, description="Weight decay: decoupled in AdamW, an L2 term in RMSprop.")
    max_grad_norm: float = Field(1.0, ge=0, description="Clip the gradient to this Euclidean norm; 0 never clips.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW: decay of the gradient's mean.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW: decay of the gradient's square.")
    adam_eps: float = Field(1e-8, gt=0, description="Added to the optimizer's denominator.")

    @property
    def pass_tokens(self) -> int:
        """Tokens per forward pass as long as nothing was measured."""
        return self.tokens_per_forward or TOKENS_PER_FORWARD


class EvaluationSettings(Settings, frozen=True, title="Evaluation"):
    """When the held-out part is evaluated, and what follows from it."""

    eval_every_steps: int | None = Field(None, ge=1, description="Updates between evaluations; default 10 per run.")
    early_stop_patience: int | None = Field(
        None,
        ge=1,
        description="Stop after this many evaluations in a row without a lower held-out loss; where the method learns "
        "from rewards, without a higher objective (reward less KL penalty).",
    )


class SampleSettings(Settings, frozen=True, title="Evaluation"):
    """Answers to held-out prompts along the way."""

    sample_prompts: int = Field(
        32, ge=0, description="Held-out prompts to answer at each evaluation, for samples and for the KL to the start."
    )
    sample_tokens: int | None = Field(
        None, ge=1, description="Longest sampled answer, in tokens; default: the longest response of the data."
    )
    sample_temperature: float = Field(1.0, ge=0, description="Temperature of the sampled answers; 0 is greedy.")


class RunSettings(Settings, frozen=True, title="Run"):
    """Where the run goes, its seed, and when it writes."""

    out: str = Field("", description="Run folder: model, metrics, samples, report; default runs/METHOD-DATA.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the order, the split, the adapters and the samples.")
    log_every_steps: int = Field(1, ge=1, description="Updates between lines of metrics.jsonl.")
    save_every_steps: int | None = Field(
        None, ge=1, description="Updates between checkpoints, besides those of save_every_minutes; default: none."
    )
    save_every_minutes: float = Field(
        10.0,
        ge=0,
        description="Most minutes between checkpoints, and so of work that a killed run loses. 0: none by the clock.",
    )
    keep_checkpoints: int | None = Field(
        None,
        ge=1,
        description="Checkpoints to keep, also after the end; older ones are deleted, those by the clock first. "
        "Default 2 during the run, none after it.",
    )
    save_dtype: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="Number format of the saved weights: auto is that of the model's own files, and fp32 for adapters; "
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
                near = get_close_matches(name, TRACKERS, n=1)
                hint = f" (did you mean {near[0]}?)" if near else ""
                raise ValueError(f"there is no tracker {name!r}{hint}: choose from {', '.join(TRACKERS)}")
        return list(dict.fromkeys(value))


class HubSettings(Settings, frozen=True, title="Run"):
    """Where the result is uploaded to."""

    push_to_hub: str | None = Field(
        None, description="Upload the finished model and its card to this repository of the hub, OWNER/NAME."
    )
    hub_public: bool = Field(False, description="Make the repository public if it is new; default: private.")

    def _refuse_hub_parts(self) -> None:
        """Settings of an upload that there is not must have their defaults."""
        if self.push_to_hub is None:
            self._refuse(("hub_public",), "push_to_hub is not set")


class ObjectiveSettings(Settings, frozen=True, title="Objective"):
    """An objective of one's choice, and what it learns or asks of the labels."""

    objective: ObjectiveName = "dpo"
    objective_arg: ObjectiveArguments = Field({})
    soft_labels: Literal["keep", "majority"] = Field(
        "keep", description="majority turns a label's probability into certainty, for objectives that need it."
    )
    learn: Names = Field(None, description="Parameters of the objective to learn, such as nu (ties).")
    learned_lr: float = Field(1e-2, gt=0, description="Peak learning rate of the parameters named by learn.")


class ScorerSettings(Settings, frozen=True, title="Objective"):
    """A reward model: its heads, and where its zero is."""

    heads: int = Field(
        1,
        ge=1,
        le=64,
        description="Heads on one trunk, each trained on its own bootstrap of the items; their spread shows how unsure "
        "a score is.",
    )
    shift: Literal["none", "chosen"] = Field(
        "chosen",
        description="Write the shift that gives the preferred responses a mean of 0 into config.json (reward_shift), "
        "or none.",
    )

    @property
    def inferred_at(self) -> float | None:
        """The demonstrator's beta, of a reward that is inferred from demonstrations; None of any other."""
        return None


class DemonstrationSettings(Settings, frozen=True, title="Data"):
    """What demonstrations are compared with."""

    samples: str = Field(
        description="Answers that the reference drew to the same prompts, several each, as afzal generate writes them."
    )


# What each ready constraint must be given, and only it.
CONSTRAINT_NEEDS = {
    "unsafe_mass": "constraint_tokens",
    "unsafe_likelihood": "constraint_data",
    "black_box": "constraint_score",
}


class ConstraintSettings(Settings, frozen=True, title="Constraint"):
    """A cost beside the objective, and how it is held."""

    constraint: str | None = Field(
        None,
        description="A cost to be kept below a bound: unsafe_mass, unsafe_likelihood, black_box, module:function or "
        "file.py:function.",
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
    """The heading a setting stands under: Data, Model, Optimisation, Objective, Constraint, Evaluation or Run; or one
    of a command's own, which is the title of the part of ``kind`` that has the setting."""
    own = (part for part in kind.__mro__ if part.__bases__ == (Settings,))
    found = next((s for s in (*SECTIONS, *own) if key in s.model_fields and issubclass(kind, s)), None)
    return found.model_config.get("title") or "Objective" if found else "Objective"
