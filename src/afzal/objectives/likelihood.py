"""Maximum-likelihood objectives."""

from __future__ import annotations

from torch import Tensor

from .inputs import Pairs, Scored
from .registry import objective


@objective(
    "sft",
    aliases=("nll",),
    unit="token",
    needs_reference=False,
    formula="-log pi(token), over the tokens of good responses",
    paper="completion-only negative log-likelihood",
)
def sft(policy: Scored, reference: Scored | None, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Supervised fine-tuning: -log pi of every scored token, ``[M]`` nats; the rewards are the log-probs ``[B]``.

    If there are opinions, only tokens of good responses carry weight. By hand: uniform logits over V give log V.
    """
    return -policy.token_logps, policy.logps.detach()
