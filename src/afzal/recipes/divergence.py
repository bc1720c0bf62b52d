"""The distance of a policy from another one, measured along its own answers."""

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
    samples: Sequence[Sample],
    prompts: Sequence[Prompt],
    layout: Layout,
    temperature: float = 1.0,
) -> list[float]:
    """KL(policy || other) along each answer, in nats: the sum of the next-token KLs. Larger is further away.

    For answers drawn from the policy at this temperature, its mean estimates the KL of full answers: unbiased, never
    negative, and with lower variance than the mean log-ratio (a Rao-Blackwell estimate). For truncated answers it is
    the KL of their first tokens, which is smaller. It is infinite if the policy gives mass to a token that ``other``
    never writes.

    Args:
        other: a reference with logits, not only log-probs of the given tokens.
        samples: the policy's answers, in the order of their prompts; every token counts, including the end marker.
        prompts: the prompts that the samples index.
        temperature: of both policies.
    """
    trees = as_trees(samples, prompts)
    values: dict[tuple[int, int], float] = {}
    # offloaded weights are copied once, not once per pass
    visit = other.acting() if isinstance(other, Offloaded) else nullcontext()
    with torch.no_grad(), visit:
        for batch in layout.batches(trees):
            scored, _ = score_with(policy, other, batch, [(kl_policy_ref, {})], temperature)
            sums = torch.zeros(batch.n_responses, dtype=torch.float64, device=batch.response_of.device)
            sums.index_add_(0, batch.response_of, scored.extras[kl_policy_ref.__name__].double())
            # rounding can leave a sum of zeros below 0
            values |= {(id(t), k): max(value, 0.0) for (t, k), value in zip(batch.sources, sums.tolist(), strict=True)}
    return [values[id(t), k] for t in trees for k in range(len(t.branches))]
