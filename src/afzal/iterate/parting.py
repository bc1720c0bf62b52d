"""Whether the reward of a run of rounds and the one that is watched beside it part: one rises while the other falls.

Pure functions of the measured rows. The watched one is what is believed, such as a judge that people agree with, a
reward model trained on people's votes, or a known truth.
"""

from __future__ import annotations

from collections.abc import Mapping

from afzal.iterate.figures import Rows
from afzal.stats.intervals import Estimate, clustered, mean


def parted(measured: Mapping[int, Rows]) -> str:
    """In words, where the reward of the last round is clearly above and its watched reward clearly below those of the
    round of the highest watched reward; empty where they are not, or nothing is watched.

    The highest round is chosen on one half of the held-out prompts and both changes are measured on the other, answers
    of equal prompt and number against each other, so that a peak by chance is not followed by a fall by choice; and the
    same has to hold with the halves exchanged. Of runs whose watched reward does not change it names fewer than 1 in
    100 (simulated in ``tests/iterate/test_iterate_parting.py``).

    Args:
        measured: by the round's number, the rows of its held-out answers, the first policy's as 0.
    """
    last = max(measured)
    if last == 0 or any(row.get(name) is None for rows in measured.values() for row in rows for name in _NAMES):
        return ""
    first, second = (_half(measured, last, parity) for parity in (0, 1))
    if first is None or second is None:
        return ""
    peak, reward, watched = first
    return (
        f"since round {peak} the reward rose by {reward.mean:.3g} while the watched one fell by {-watched.mean:.3g}, "
        "clearly on either half of the held-out prompts: they part"
    )


_NAMES = ("reward", "watch_reward")


def _half(measured: Mapping[int, Rows], last: int, parity: int) -> tuple[int, Estimate, Estimate] | None:
    """The peak chosen on the prompts of one parity, and both changes since on those of the other, where they are
    clear."""
    prompts = sorted({row["prompt_index"] for row in measured[last]})
    chosen, other = set(prompts[parity::2]), set(prompts[1 - parity :: 2])
    heights = {k: _mean(rows, chosen) for k, rows in measured.items()}
    peak = max(heights, key=heights.__getitem__)
    if peak == last or len(other) < 2:
        return None
    reward, watched = (_change(measured[peak], measured[last], other, name) for name in _NAMES)
    return (peak, reward, watched) if reward.ends[0] > 0 > watched.ends[1] else None


def _mean(rows: Rows, prompts: set[int]) -> float:
    values = [row["watch_reward"] for row in rows if row["prompt_index"] in prompts]
    return sum(values) / len(values) if values else float("-inf")


def _change(before: Rows, after: Rows, prompts: set[int], name: str) -> Estimate:
    """The mean change of the answers to some prompts, with its error over prompts."""
    was = {(row["prompt_index"], row["sample"]): row[name] for row in before}
    kept = [row for row in after if row["prompt_index"] in prompts]
    changes = [row[name] - was[row["prompt_index"], row["sample"]] for row in kept]
    return mean(clustered([row["prompt_index"] for row in kept], changes))
