"""How far a policy is from another one, measured along answers that it wrote itself."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from afzal.generate import Prompt, Sample, as_trees
from afzal.model.reference import Offloaded
from afzal.model.statistics import LiveReference, score_with
from afzal.objectives.statistics import kl_policy_ref
from afzal.train.feed import Layout


def kl_along(
    policy: Any,
    other: LiveReference,
    drawn: Sequence[Sample],
    prompts: Sequence[Prompt],
    layout: Layout,
    temperature: float = 1.0,
) -> list[float]:
    """KL(policy || other) along each answer, in nats: the sum of its next tokens' KLs. Larger is further away.

    Over answers drawn from the policy at this temperature its mean is the KL of whole answers: unbiased, never
    negative, and of lower variance than the mean log-ratio (a Rao-Blackwell estimate). Over answers that were cut it is
    the KL of their first tokens, which is less. It is infinite where the policy gives mass to a token that ``other``
    never writes.

    Args:
        other: has logits, not only log-probs of the tokens that stand there.
        drawn: the policy's answers, in order of their prompts; every token counts, the end marker included.
        prompts: those that the samples count in.
        temperature: of both policies.
    """
    trees = as_trees(drawn, prompts)
    values: dict[tuple[int, int], float] = {}
    # weights that live elsewhere travel once, not once per pass
    visit = other.acting() if isinstance(other, Offloaded) else nullcontext()
    with torch.no_grad(), visit:
        for batch in layout.batches(trees):
            scored, _ = score_with(policy, other, batch, [(kl_policy_ref, {})], temperature)
            sums = torch.zeros(batch.n_responses, dtype=torch.float64, device=batch.response_of.device)
            sums.index_add_(0, batch.response_of, scored.extras[kl_policy_ref.__name__].double())
            values |= {(id(t), k): value for (t, k), value in zip(batch.sources, sums.tolist(), strict=True)}
    return [values[id(t), k] for t in trees for k in range(len(t.branches))]
