"""The settings of `afzal iterate`: rounds of generating, scoring, pairing and training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from .base import Columns, ObjectiveArguments, ObjectiveName, Settings
from .memory import MemorySettings
from .sections import ModelSettings, OptimisationSettings, RunSettings
from .training import fill_adapter

PEOPLE = "people"

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Liu et al. 2023, arXiv 2309.06657: 64 candidates at temperature .7 and top-k 40, 8 accepted; hinge at gamma .05.
    "rso": {
        "n": 64,
        "temperature": 0.7,
        "top_k": 40,
        "pairing": "rso",
        "rso_beta": 0.5,
        "rso_accepted": 8,
        "objective": "hinge",
        "rounds": 1,
    },
    # Guo et al. 2024, arXiv 2402.04792: two answers of the current policy, then one update on them.
    "online": {
        "n": 2,
        "pairing": "best_worst",
        "rounds": 100,
        "max_steps": 1,
        "lr_schedule": "constant",
        "warmup": 0.0,
        "measure_every": 10,
        "eval_fraction": 0.0,
    },
    # Chen et al. 2024, arXiv 2401.01335: the data's answers against the policy's; each round starts from the last.
    "spin": {"n": 1, "pairing": "spin", "reference": "previous"},
}
"""What a preset sets unless a setting overrides it."""


class RoundSettings(Settings, frozen=True, title="Rounds"):
    """The number of rounds, and the prompts of each."""

    preset: Literal["rso", "online", "spin"] | None = Field(
        None, description="Settings of a known method; each can still be overridden."
    )
    rounds: int = Field(3, ge=1, description="Maximum number of rounds of generating, scoring, pairing and training.")
    prompts: str = Field(
        description="Prompts, in any format that training data may have; for spin, with the answers to imitate."
    )
    columns: Columns = Field({}, description="Field names by role, as chosen=good,prompt=question.")
    data_format: str | None = Field(None, description="Name of the prompts' format; overrides detection.")
    prompts_per_round: int | None = Field(
        None,
        ge=1,
        description="Prompts per round, each used in one round only; default: an equal share for each round.",
    )
    reuse_prompts: bool = Field(False, description="Start over when the prompts run out, instead of stopping.")
    max_tokens: int = Field(1024, ge=2, description="Longest prompt + response, in tokens; longer prompts are skipped.")
    eos_token: str | None = Field(None, description="Token that ends a response, if not the tokenizer's EOS.")
    chat_template: str | None = Field(
        None, description="Jinja file (or text) to use instead of the tokenizer's chat template."
    )


class GenerationSettings(Settings, frozen=True, title="Generation"):
    """How answers are sampled."""

    n: int = Field(5, ge=1, description="Answers per prompt.")
    max_new_tokens: int = Field(256, ge=1, description="Longest answer, in tokens.")
    min_new_tokens: int = Field(0, ge=0, description="Tokens before an answer may end.")
    temperature: float = Field(1.0, gt=0, description="Temperature of the answers to train on.")
    top_p: float = Field(1.0, gt=0, le=1, description="Sample from the likeliest tokens with this total probability.")
    top_k: int | None = Field(None, ge=1, description="Sample from this many of the likeliest tokens.")
    generator: str | None = Field(
        None,
        description="YAML file of a server that writes the answers of every round; default: this process writes them. "
        "Held-out answers are always written by this process.",
    )


class PairingSettings(Settings, frozen=True, title="Pairs"):
    """How answers are scored, filtered and paired."""

    reward: str | None = Field(
        None,
        description="Scorer of the answers: a reward model's folder, module:function, file.py:function, the YAML "
        "file of a judge that scores each answer alone, or people.",
    )
    watch_reward: str | None = Field(
        None,
        description="A second reward that is never trained on; if it falls while reward rises, reward is being hacked.",
    )
    pairing: Literal["best_worst", "best_random", "all", "rso", "spin"] = Field(
        "best_worst",
        description="Best against worst answer, best against a random one, all pairs, pairs of answers accepted by "
        "rejection sampling, or the data's answer against the policy's.",
    )
    min_margin: float = Field(
        0.0, ge=0, description="Skip pairs whose rewards differ by this or less; 0 skips equal rewards."
    )
    require_eos: bool = Field(True, description="Skip answers cut off by the token limit.")
    rso_beta: float = Field(
        0.5, gt=0, description="rso: accept with probability exp((reward - best) / this); larger accepts more."
    )
    rso_accepted: int = Field(8, ge=2, description="rso: answers to accept per prompt; they form half as many pairs.")
    accumulate: bool = Field(False, description="Train on the pairs of all rounds so far, not only of the newest.")


class CostSettings(Settings, frozen=True, title="Cost"):
    """A bound on a cost, enforced by a multiplier that is updated once per round (C-DPO)."""

    cost: str | None = Field(
        None,
        description="A cost to hold at cost_bound, given like reward; answers are compared by reward minus multiplier "
        "times cost.",
    )
    cost_bound: float | None = Field(
        None, description="Largest allowed mean cost of the policy's answers, in units of the cost."
    )
    dual_lr: float = Field(
        1.0,
        gt=0,
        description="Change of the multiplier per round and unit of mean cost above the bound.",
    )
    dual_start: float = Field(0.0, ge=0, description="The multiplier before the first round, reward per cost.")


class StopSettings(Settings, frozen=True, title="Stopping"):
    """Conditions that end a run before its last round."""

    kl_budget: float | None = Field(
        None, gt=0, description="Stop when the KL to the first policy exceeds this, in nats per response."
    )
    patience: int | None = Field(
        None, ge=1, description="Stop after this many measurements in a row without a higher held-out reward."
    )
    on_parting: Literal["stop", "warn"] = Field(
        "stop", description="What to do if the reward rises while watch_reward falls: stop, or only warn."
    )
    min_gain: float = Field(0.0, ge=0, description="With patience: the smallest increase of the reward that counts.")
    held_out: int | None = Field(
        None,
        ge=1,
        description="Prompts that every policy is measured on and never trained on; default 64, at most a fifth.",
    )
    held_out_prompts: str | None = Field(None, description="A file of held-out prompts, instead of a part of prompts.")
    held_out_samples: int = Field(
        4, ge=1, description="Answers per held-out prompt, at temperature 1; a win rate needs 2."
    )
    measure_every: int = Field(1, ge=1, description="Rounds between measurements; the last round is always measured.")


class IterateConfig(
    RunSettings,
    OptimisationSettings,
    MemorySettings,
    ModelSettings,
    StopSettings,
    CostSettings,
    PairingSettings,
    GenerationSettings,
    RoundSettings,
    frozen=True,
):
    """Iterative preference optimisation."""

    objective: ObjectiveName = "dpo"
    objective_arg: ObjectiveArguments = Field({})
    reference: Literal["initial", "previous"] = Field(
        "initial", description="Keep each round near the first policy, or near the one that the round starts from."
    )
    eval_fraction: float = Field(0.1, ge=0, lt=1, description="Share of a round's pairs held out in its training.")
    eval_every_steps: int | None = Field(None, ge=1, description="Updates between evaluations; default 10 per round.")

    save_dtype: Literal["auto", "fp32", "bf16"] = Field(
        "fp32",
        description="Number format of the weights that a round saves and the next one starts from; bf16 rounds small "
        "steps away, auto is the format of the model's files.",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        """Fill in the preset's values, and defaults that depend on other settings."""
        if not isinstance(values, dict):
            return values
        filled = {**PRESETS.get(str(values.get("preset")), {}), **values}
        fill_adapter(filled, cls)
        if isinstance(source := filled.get("prompts"), str) and not filled.get("out"):
            filled["out"] = f"runs/iterate-{Path(source).name.partition('.')[0] or 'prompts'}"
        return filled

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError("min_new_tokens is above max_new_tokens")
        if self.max_new_tokens >= self.max_tokens:
            raise ValueError(f"max_new_tokens leaves no room for a prompt in max_tokens ({self.max_tokens})")
        if self.pairing != "spin" and self.n < 2:
            raise ValueError("n must be 2 or more: a pair needs two answers to one prompt")
        if self.pairing != "spin" and self.reward is None:
            raise ValueError("reward is missing: a reward model's folder, module:function, file.py:function, or people")
        if self.cost is not None and self.cost_bound is None:
            raise ValueError("cost_bound is missing: the largest mean cost that answers may have")
        if self.pairing == "rso" and self.rso_accepted > self.n:
            raise ValueError(f"rso_accepted ({self.rso_accepted}) is above n ({self.n})")
        if self.held_out is not None and self.held_out_prompts is not None:
            raise ValueError("held_out has no effect with held_out_prompts: leave one of them out")
        return self

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        """Refuse settings that would be ignored."""
        by_people = self.reward == PEOPLE
        if self.pairing != "rso":
            self._refuse(("rso_beta", "rso_accepted"), f"pairing is {self.pairing}")
        if by_people:
            self._refuse(("pairing", "min_margin"), "people say which answers are better")
        if self.pairing == "spin":
            self._refuse(("min_margin",), "spin sets the data's answer above the policy's, whatever their rewards")
        if self.watch_reward is None or self.reward is None or by_people:
            self._refuse(("on_parting",), "it needs both reward and watch_reward")
        if self.patience is None:
            self._refuse(("min_gain",), "patience is not set")
        elif self.reward is None or by_people:
            self._refuse(("patience",), "there is no reward that measures the held-out answers")
        if self.cost is None:
            self._refuse(("cost_bound", "dual_lr", "dual_start"), "there is no cost")
        elif by_people:
            self._refuse(("cost",), "people say which answers are better")
        elif self.pairing == "spin":
            self._refuse(("cost",), "spin sets the data's answer above the policy's, whatever their costs")
        else:
            self._refuse(("patience", "min_gain"), "the reward may fall while the multiplier of the cost rises")
        self._refuse_adapter_parts()
        if self.optimizer != "adamw":
            self._refuse(("adam_beta1", "adam_beta2"), f"the optimizer is {self.optimizer}")
        if self.eval_fraction == 0:
            self._refuse(("eval_every_steps",), "nothing is held out (eval_fraction is 0)")
        return self
