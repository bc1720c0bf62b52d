"""Detects whether a run's reward and its watched reward part: one rises while the other falls.

Pure functions of the measured rows. The watched reward is the trusted one, such as a judge that people agree with, a
reward model trained on people's votes, or a known truth.
"""

from __future__ import annotations

from collections.abc import Mapping

from afzal.iterate.round_figures import Rows, change
from afzal.stats.intervals import Estimate


def detect_parting(measured: Mapping[int, Rows]) -> str:
    """A sentence if, compared with the round of the highest watched reward, the last round's reward is clearly higher
    and its watched reward clearly lower; else empty, also without a watched reward.

    The peak round is chosen on one half of the held-out prompts, and both changes are measured on the other, pairing
    answers of equal prompt and number; otherwise choosing a chance peak would itself produce a fall. The same must hold
    with the halves exchanged. Among runs with an unchanged watched reward fewer than 1 in 100 are flagged (simulated in
    ``tests/iterate/test_iterate_parting.py``).

    Args:
        measured: rows of held-out answers by round number; 0 is the first policy.
    """
    last = max(measured)
    if last == 0 or any(row.get(name) is None for rows in measured.values() for row in rows for name in _NAMES):
        return ""
    first, second = (_check_half(measured, last, parity) for parity in (0, 1))
    if first is None or second is None:
        return ""
    peak, reward, watched = first
    return (
        f"since round {peak} the reward rose by {reward.mean:.3g} while the watched one fell by {-watched.mean:.3g}, "
        "clearly on either half of the held-out prompts: they part"
    )


_NAMES = ("reward", "watch_reward")


def _check_half(measured: Mapping[int, Rows], last: int, parity: int) -> tuple[int, Estimate, Estimate] | None:
    """The peak chosen on the prompts of one parity, and both changes since then on the other prompts; None if they are
    not clear."""
    prompts = sorted({row["prompt_index"] for row in measured[last]})
    chosen, measured_on = set(prompts[parity::2]), set(prompts[1 - parity :: 2])
    heights = {k: _mean(rows, chosen) for k, rows in measured.items()}
    peak = max(heights, key=heights.__getitem__)
    if peak == last or len(measured_on) < 2:
        return None
    reward, watched = (_change(measured[peak], measured[last], measured_on, name) for name in _NAMES)
    return (peak, reward, watched) if reward.ends[0] > 0 > watched.ends[1] else None


def _mean(rows: Rows, prompts: set[int]) -> float:
    values = [row["watch_reward"] for row in rows if row["prompt_index"] in prompts]
    return sum(values) / len(values) if values else float("-inf")


def _change(before: Rows, after: Rows, prompts: set[int], name: str) -> Estimate:
    """The mean change over the answers to some prompts, with its standard error over prompts."""
    return change(before, [row for row in after if row["prompt_index"] in prompts], name)
