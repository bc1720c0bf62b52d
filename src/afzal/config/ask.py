"""The settings of ``afzal ask``."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from .base import Columns, Names, Settings

AskBy = Literal["d_optimal", "bald", "entropy", "information", "repeat", "random", "max_margin", "closest"]
_BY_MODELS = ("information", "closest")


class AskConfig(Settings, frozen=True):
    """Which pairs of answers to ask people about next."""

    data: str = Field(description="The pool: rows with two responses or more, with or without votes, in any format.")
    n: int = Field(100, ge=1, description="Number of questions to choose.")
    by: AskBy = Field(
        "d_optimal",
        description="The rule. d_optimal and bald: pairs that teach the model most. entropy: pairs it is least sure "
        "of. information: pairs that settle a leaderboard of models soonest. repeat: pairs people disagree on. "
        "max_margin and closest measured worse than random.",
    )
    random: float = Field(0.1, gt=0, le=1, description="Share of the questions drawn at random.")
    votes: str | None = Field(
        None,
        description="Votes so far: rows, or a folder of afzal annotate; the word nobody ignores all votes. Default: "
        "those in the pool.",
    )
    axis: str | None = Field(None, description="Only votes on this axis, such as helpful; default: all, pooled.")
    reward: Names = Field(
        None,
        description="Scorers to use instead of the linear model: folders of reward models, or file.py:function with "
        "function(prompt, answer). Several scorers, or several heads, form an ensemble.",
    )
    policy: Names = Field(None, description="Policies as scorers: a score is beta x (log-prob - reference log-prob).")
    reference: str | None = Field(None, description="The policies' reference.")
    beta: float = Field(0.1, gt=0, description="The policies' beta.")
    features: str | None = Field(
        None,
        description="Features of the linear model: words (hashed, the default), rows (extra.features, a list of "
        "numbers for each response), or a model's folder (its last hidden state).",
    )
    ridge: float = Field(
        1.0, gt=0, description="Precision of the linear model's prior; larger values trust votes less."
    )
    curve: bool = Field(False, description="Also simulate the rule and random choice on the pairs that have votes.")
    seeds: int = Field(10, ge=2, description="Number of simulations of the learning curve.")
    labels: int = Field(200, ge=40, description="Labels or votes at the end of the learning curve.")
    seed: int = Field(
        0, ge=0, lt=2**63, description="Seed of the random share, of ties between scores, and of the curve."
    )
    columns: Columns = Field({}, description="Field names of the pool by role, as chosen=good,prompt=question.")
    data_format: str | None = Field(None, description="Name of the pool's format; overrides detection.")
    max_tokens: int = Field(
        1024, ge=2, description="Longest prompt + response that a model reads, in tokens; longer ones are cut."
    )
    tokens_per_forward: int = Field(8192, ge=2, description="Tokens per forward pass.")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$", description="auto, cpu, cuda, cuda:1 or mps.")
    out: str = Field("to_label.jsonl", description="File for the questions, as Afzal rows.")

    @property
    def scorers(self) -> tuple[str, ...]:
        """The given reward models, functions and policies."""
        return (*(self.reward or ()), *(self.policy or ()))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.policy is None) != (self.reference is None):
            raise ValueError("policy and reference belong together")
        if self.policy is None:
            self._refuse(("beta",), "there is no policy")
        if not self.curve:
            self._refuse(("seeds", "labels"), "curve is off")
        elif self.by in ("repeat", "random"):
            raise ValueError(f"curve has no effect: {self.by} has nothing to be compared with random")
        if self.by in (*_BY_MODELS, "repeat", "random"):
            because = "it uses votes on models" if self.by in _BY_MODELS else "it uses no scores"
            self._refuse(("reward", "policy", "reference", "features", "ridge"), f"{self.by} reads none; {because}")
        elif self.scorers and self.by != "d_optimal" and not self.curve:
            self._refuse(("features", "ridge"), f"{self.by} uses only the given scores")
        return self
