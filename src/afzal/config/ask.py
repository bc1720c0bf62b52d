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
        description="The rule. d_optimal and bald: what teaches the model most. entropy: what it is least sure of. "
        "information: what settles a leaderboard of models soonest. repeat: pairs on which people disagree. max_margin "
        "and closest were measured to be worse than random.",
    )
    random: float = Field(0.1, gt=0, le=1, description="Share of the questions drawn at random.")
    votes: str | None = Field(
        None,
        description="Votes so far: rows, or a folder of afzal annotate; nobody ignores all votes. Default: those "
        "in the pool.",
    )
    axis: str | None = Field(None, description="Only votes on this axis, such as helpful; default: all, pooled.")
    reward: Names = Field(
        None,
        description="Scores that the rule uses in place of a linear model: folders of reward models, or "
        "file.py:function with function(prompt, answer). Several are an ensemble, and so are several heads.",
    )
    policy: Names = Field(None, description="Policies as scorers, by beta x (log-prob - reference's).")
    reference: str | None = Field(None, description="The policies' reference.")
    beta: float = Field(0.1, gt=0, description="The policies' beta.")
    features: str | None = Field(
        None,
        description="What the linear model sees: words (hashed, the default), rows (extra.features, a list of numbers "
        "for each response), or a model's folder (its last hidden state).",
    )
    ridge: float = Field(1.0, gt=0, description="Precision of the linear model's prior; larger trusts votes less.")
    curve: bool = Field(False, description="Also simulate the rule against random on the pairs with votes.")
    seeds: int = Field(10, ge=2, description="Simulations of the learning curve.")
    labels: int = Field(200, ge=40, description="Labels or votes at the end of the learning curve.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the random share, of equal scores, and of the curve.")
    columns: Columns = Field({}, description="Which field of the pool is what, as chosen=good,prompt=question.")
    data_format: str | None = Field(None, description="Name of the pool's format, when detection is to be overruled.")
    max_tokens: int = Field(
        1024, ge=2, description="Longest prompt + response that a model reads, in tokens; longer ones are cut."
    )
    tokens_per_forward: int = Field(8192, ge=2, description="Tokens per forward pass.")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$", description="auto, cpu, cuda, cuda:1 or mps.")
    out: str = Field("to_label.jsonl", description="File for the questions, as Afzal rows.")

    @property
    def scorers(self) -> tuple[str, ...]:
        """Reward models, functions and policies that are given."""
        return (*(self.reward or ()), *(self.policy or ()))

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.policy is None) != (self.reference is None):
            raise ValueError("policy and reference belong together")
        if self.policy is None:
            self._refuse(("beta",), "there is no policy")
        if not self.curve:
            self._refuse(("seeds", "labels"), "curve is off")
        elif self.by in ("repeat", "random"):
            raise ValueError(f"curve has no effect: {self.by} has nothing to be compared with random")
        if self.by in (*_BY_MODELS, "repeat", "random"):
            because = "it goes by votes on models" if self.by in _BY_MODELS else "it goes by no scores"
            self._refuse(("reward", "policy", "reference", "features", "ridge"), f"{self.by} reads none; {because}")
        elif self.scorers and self.by != "d_optimal" and not self.curve:
            self._refuse(("features", "ridge"), f"{self.by} goes by the given scores alone")
        return self
