"""Models by strength, with a separate reliability for every judge or annotator (Crowd-BT)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from afzal.judge.verdicts import POINTS, Verdict, Verdicts
from afzal.stats.annotators import crowd_bt
from afzal.text import number

RIDGE = 1.0
LEVEL = 0.02  # nats between the strongest and the weakest model, below which judges cannot be weighed
CERTAIN = 0.05  # p-value, divided by the number of judges, below which a judge is called reversed
COIN = 0.5
"""A reliability of 1/2 is a coin; below it, verdicts are reversed."""


def weighed_as_plain(verdicts: Verdicts) -> dict[str, Any]:
    """Strengths in nats (sum 0) and the reliability of each judge, with a table and findings; empty for one judge.

    The ridge and differences between prompts shrink reliabilities and strengths, so they serve only to compare judges
    with each other: they are neither accuracies nor the leaderboard's strengths.
    """
    counted = [v for v in verdicts.verdicts if v.outcome != "none"]
    judges = sorted({v.judge for v in counted})
    models = sorted({name for v in counted for name in (v.first, v.second)})
    if len(judges) < 2 or len(models) < 2:
        return {}
    judge, model = ({name: k for k, name in enumerate(names)} for names in (judges, models))
    columns = [(model[v.first], model[v.second], POINTS[v.outcome], judge[v.judge]) for v in counted]
    first, second, outcome, judge_codes = (np.array(column) for column in zip(*columns, strict=True))
    try:
        fit = crowd_bt(first, second, outcome, judge_codes, n_models=len(models), n_annotators=len(judges), ridge=RIDGE)
    except ValueError as error:
        return {"findings": [f"Judges are not weighed: {error}"]}
    if np.ptp(fit.theta) < LEVEL:
        return {"findings": ["Over all verdicts the models are level, so judges cannot be weighed."]}
    eta = dict(zip(judges, map(float, fit.eta), strict=True))
    theta = {models[k]: float(fit.theta[k]) for k in np.argsort(-fit.theta)}
    reversed_ = [name for name, value in eta.items() if value < COIN and _is_reversed(counted, name, theta, judges)]
    given = Counter(v.judge for v in counted)
    words = (
        "How often each judge names the stronger model, with strengths and reliabilities fitted jointly (Crowd-BT, "
        "with a ridge of 1). 0.5 is a coin; below it verdicts are reversed. It compares judges; it is not an accuracy."
    )
    table = {
        "title": "Reliability",
        "words": words,
        "columns": ["judge", "reliability", "verdicts"],
        "rows": [[name, number(eta[name], 3), f"{given[name]:,}"] for name in sorted(eta, key=lambda name: -eta[name])],
    }
    plain = {"ridge": RIDGE, "strengths": theta, "reliability": eta, "log_likelihood": fit.log_likelihood}
    findings = [f"{name} names the weaker model more often than the stronger one." for name in reversed_]
    return {"weighed": plain, "tables": [table], "findings": findings}


def _is_reversed(verdicts: Sequence[Verdict], judge: str, theta: Mapping[str, float], judges: Sequence[str]) -> bool:
    """Whether a judge names the weaker model more often than chance explains; a few verdicts never show that.

    Verdicts on one prompt (both orders, several pairs) are not independent, so each prompt counts once, for the side
    that the judge takes more often on it.
    """
    from scipy.stats import binomtest

    leads: Counter[str] = Counter()
    for v in verdicts:
        if v.judge == judge and v.outcome in ("first", "second"):
            gap = (theta[v.first] - theta[v.second]) * (1 if v.outcome == "first" else -1)
            leads[v.prompt] += (gap > 0) - (gap < 0)
    right, n = sum(lead > 0 for lead in leads.values()), sum(lead != 0 for lead in leads.values())
    return n > 0 and bool(binomtest(right, n, alternative="less").pvalue < CERTAIN / len(judges))
