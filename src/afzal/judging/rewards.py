"""Judges that score each answer alone, used as rewards."""

from __future__ import annotations

from pathlib import Path

import torch

from afzal.config.judging import JudgeConfig
from afzal.errors import AfzalError
from afzal.judging.judges import resolve_judge, rewarder_of, server_rewards
from afzal.objectives import names_function
from afzal.rewards.source import Loaders, Rewarder, reward_source


def names_judge(spec: str) -> bool:
    """Whether ``spec`` is the YAML file of a judge."""
    return Path(spec).suffix in (".yaml", ".yml")


def scoring_judge(spec: str) -> JudgeConfig:
    """The settings of a judge that scores each answer alone: a rule, a function, a reward model, a policy, or a server
    with ``verdict.score``.

    Raises:
        AfzalError: it is not a judge, or it only compares answers.
    """
    settings = resolve_judge(spec).settings
    assert settings is not None
    alone = settings.kind == "http" and settings.verdict.score is not None
    if settings.kind in ("model", "http", "debate", "assisted") and not alone:
        raise AfzalError(
            f"a judge of kind {settings.kind} is not a reward",
            where=spec,
            why="it compares two answers, but a reward is a number for each single answer",
            remedy=("verdict: {score: {}}, a score for each answer; " if settings.kind == "http" else "")
            + "a judge of kind rule, function, reward or policy; or train a reward model on the verdicts in "
            "rows.jsonl of afzal judge",
        )
    return settings


def named_in(spec: str) -> list[str]:
    """What determines a reward in addition to ``spec``: the models and the function named in a judge's YAML file.

    Raises:
        AfzalError: as for :func:`scoring_judge`.
    """
    if not names_judge(spec):
        return []
    settings = scoring_judge(spec)
    return [s for s in (settings.model, settings.reference, settings.function) if s]


def by_model(spec: str) -> bool:
    """Whether rewards come from a model in this process, rather than from a function, a rule or a server.

    Raises:
        AfzalError: as for :func:`scoring_judge`.
    """
    if names_judge(spec):
        return scoring_judge(spec).kind in ("reward", "policy")
    return not names_function(spec)


def reward_or_judge(
    spec: str,
    *,
    device: torch.device | str = "cpu",
    max_tokens: int = 1024,
    tokens_per_forward: int = 8192,
    eos_token: str | None = None,
    replies: Path,
    loaders: Loaders | None = None,
) -> Rewarder:
    """As :func:`afzal.rewards.source.reward_source`, but ``spec`` may also be the YAML file of a judge.

    Args:
        replies: file for a server's replies; the server is asked about each answer only once.

    Raises:
        AfzalError: as for :func:`scoring_judge` and :func:`afzal.rewards.source.reward_source`.
    """
    if not names_judge(spec):
        return reward_source(
            spec,
            device=device,
            max_tokens=max_tokens,
            tokens_per_forward=tokens_per_forward,
            eos_token=eos_token,
            loaders=loaders,
        )
    settings = scoring_judge(spec)
    if settings.kind == "http":
        return server_rewards(settings, settings.name or Path(spec).stem, replies)
    return rewarder_of(
        settings,
        device=device,
        max_tokens=max_tokens,
        tokens_per_forward=tokens_per_forward,
        eos_token=eos_token,
        loaders=loaders,
    )
