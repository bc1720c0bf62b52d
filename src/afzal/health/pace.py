"""Will a run's updates move its weights at all? Said before the first of them, and after the last."""

from __future__ import annotations

from collections.abc import Callable

from afzal.text import plural, setting

LEAST_PACE = 0.1
"""Sum of the learning rates times the root of the weights that train, below which nothing measurable is learned.

Adam moves every weight by about the learning rate, so that a log-prob moves by that times the sum of the gradient's
sizes, which grows with the root of their number. Llamas of 11 thousand, 116 thousand and 1.4 million random weights,
trained on 216 pairs whose preference is plain (14 updates of DPO, beta 0.1, and of SFT): at 0.01 the margin became
0.006 and the SFT loss fell by 0.04 %, at 0.03 to 0.1 by 0.05 to 0.6 and by 0.4 to 7 %, at 0.3 to 1 by 0.5 to 4 and by 4
to 27 %. A model of 7 billion weights has 6 after 150 updates at 1e-6.
"""


def pace(steps: int, lr: Callable[[int], float], weights: int) -> float:
    """Sum of the learning rates of all updates, times the root of the number of weights that train."""
    return sum(lr(step) for step in range(steps)) * weights**0.5


def pace_note(steps: int, lr: Callable[[int], float], weights: int) -> str:
    """What to say where the updates are too few or too small to learn from; empty where they are not."""
    found = pace(steps, lr, weights)
    if found >= LEAST_PACE or not found:
        return ""
    peak = max(lr(step) for step in range(steps))
    enough = float(f"{peak * faster(found):.0e}")
    return (
        f"{plural(steps, 'update')} at lr {setting(peak)} will hardly move {weights:,} weights, and nothing measurable "
        "will be learned: make more updates (a smaller batch_size, more epochs), or keep their number and raise lr to "
        f"about {setting(enough)}"
    )


def faster(found: float) -> float:
    """By how much to raise the learning rate of a run with this pace, in which nothing was learned: tenfold or more."""
    return max(10.0, 10 * LEAST_PACE / found) if found else 10.0
