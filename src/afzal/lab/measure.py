"""Measure policies of the enumerable language exactly: reward, KL, and the best possible reward at that KL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from afzal.lab import exact, language
from afzal.lab.exact import Exact
from afzal.model.load import load_model


def figures(policy: str | Path, reference: str | Path) -> Exact:
    """The exact figures of a model or run folder, adapters included, over the 32 held-out prompts.

    Args:
        policy: the folder to measure.
        reference: the reference for KL (nats) and win rate, usually the SFT run.

    Raises:
        ValueError: one of the models puts more than 1e-3 of its probability outside the language.
        afzal.errors.AfzalError: a folder holds no model.
    """
    (result,) = _figures([policy], reference)
    return result


def table(policies: Sequence[str | Path], reference: str | Path) -> str:
    """The figures of several policies as plain text, one line each; ``gain won`` is the share of the possible gain."""
    width = max(len(str(p)) for p in policies)
    lines = [f"{'':{width}}  reward     KL   best there  gain won  beats {reference}"]
    for policy, f in zip(policies, _figures(policies, reference), strict=True):
        lines.append(
            f"{policy!s:{width}}  {f.reward:6.2f}  {f.kl:5.2f}  {f.optimal:11.2f}  {f.share:8.0%}  {f.win_rate:6.1%}"
        )
    return "\n".join(lines)


def _figures(policies: Sequence[str | Path], reference: str | Path) -> list[Exact]:
    _, held_out = language.prompts()
    log_ref, rewards = log_policy(reference, held_out), language.reward(held_out)
    return [exact.evaluate(log_policy(policy, held_out), log_ref, rewards) for policy in policies]


def log_policy(folder: str | Path, prompts: np.ndarray) -> np.ndarray:
    """``[X, Y]`` the log-probability of every response to prompts ``[X, 3]`` under a saved model, nats."""
    return exact.log_policy(load_model(str(folder)), prompts)
