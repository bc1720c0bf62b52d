"""TRL 1.16's own loss code as an oracle: equal for the same losses, and different where it is known to differ.

TRL's ``_compute_loss`` is called unchanged, on a trainer that has only the attributes that it reads, with a model
that returns given log-probs. Needs TRL 1.16 in the environment (``make peers``); skipped without it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers_objectives import run
from torch import Tensor

from afzal.objectives import Scored, bind, pairs

trl = pytest.importorskip("trl", reason="TRL is not installed here (make peers)")
pytestmark = pytest.mark.slow

N, LENGTH = 6, 5


class Rows:
    """N winners and N losers of 1 to 5 tokens, padded for TRL and flat for Afzal."""

    def __init__(self, seed: int = 0) -> None:
        rng = torch.Generator().manual_seed(seed)
        lengths = torch.randint(1, LENGTH + 1, (2 * N,), generator=rng)
        self.mask = (torch.arange(LENGTH) < lengths[:, None]).long()
        self.policy, self.reference, self.log_sum_p2 = (
            -2 * torch.rand(2 * N, LENGTH, generator=rng) - 0.05 for _ in range(3)
        )

    def flat(self, padded: Tensor) -> Scored:
        keep = self.mask.bool()
        response_of = torch.arange(2 * N)[:, None].expand(-1, LENGTH)[keep]
        extras = {"log_sum_p2": self.log_sum_p2[keep]}
        return Scored(padded[keep], response_of, 2 * N, extras)


class Answers(torch.nn.Module):
    """A model that always returns the given log-probs."""

    is_gradient_checkpointing = False

    def __init__(self, rows: Rows, padded: Tensor) -> None:
        super().__init__()
        self.rows, self.padded = rows, padded

    def forward(self, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(
            log_probs=self.padded * self.rows.mask,
            log_sum_sq_probs=self.rows.log_sum_p2,
            entropy=self.padded * 0,
            mean_logits=self.padded * 0,
            is_top1=self.rows.mask.bool(),
            aux_loss=None,
        )


def theirs(rows: Rows, loss_type: str | list[str], **settings: Any) -> float:
    """The loss that TRL computes; the first token of every row stands for the prompt."""
    given = {
        "beta": 0.3,
        "label_smoothing": 0.0,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "ld_alpha": None,
        "use_weighting": False,
        "loss_weights": [1.0],
        **settings,
    }
    trainer = SimpleNamespace(
        model=Answers(rows, rows.policy),
        ref_model=Answers(rows, rows.reference),
        accelerator=SimpleNamespace(
            device="cpu", gather_for_metrics=lambda x: x, gather=lambda x: x, unwrap_model=lambda x: x
        ),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=0.05),
        aux_loss_enabled=False,
        precompute_ref_logps=False,
        loss_types=[loss_type] if isinstance(loss_type, str) else loss_type,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        **given,
    )
    prompt = torch.zeros(2 * N, 1, dtype=torch.long)
    mask = torch.cat([prompt, rows.mask], 1)
    inputs = {"input_ids": mask * 0, "completion_mask": mask, "attention_mask": mask * 0 + 1}
    return float(trl.DPOTrainer._compute_loss(trainer, trainer.model, inputs, False))


def ours(rows: Rows, name: str, **parameters: Any) -> float:
    given = pairs(torch.arange(N), torch.arange(N, 2 * N))
    losses, _ = run(name, rows.flat(rows.policy), rows.flat(rows.reference), given, **parameters)
    return float(losses.mean())


B = {"beta": 0.3}
SAME = [
    ("sigmoid", {}, "dpo", B),
    ("hinge", {}, "hinge", B),
    ("ipo", {}, "ipo_mean", B),
    ("exo_pair", {"label_smoothing": 0.1}, "exo_pair", {**B, "label_smoothing": 0.1}),
    ("nca_pair", {}, "nca_pair", B),
    ("robust", {"label_smoothing": 0.1}, "robust", {**B, "label_smoothing": 0.1}),
    ("bco_pair", {}, "bco_pair", {**B, "state": {"shift": 0.0}}),
    ("sppo_hard", {}, "sppo_hard", B),
    ("aot", {"label_smoothing": 0.1}, "aot", {**B, "label_smoothing": 0.1}),
    ("aot_unpaired", {}, "aot_unpaired", B),
    ("apo_zero", {}, "apo_zero", B),
    ("apo_down", {}, "apo_down", B),
    ("discopop", {}, "discopop", {**B, "tau": 0.05}),
    ("sigmoid_norm", {}, "ln_dpo", B),
    ("sigmoid", {"ld_alpha": 0.4}, "ld_dpo", {**B, "alpha": 0.4}),
    ("sigmoid", {"f_divergence_type": "forward_kl"}, "f_dpo", {**B, "divergence": "forward_kl"}),
    ("sigmoid", {"f_divergence_type": "js_divergence"}, "f_dpo", {**B, "divergence": "jensen_shannon"}),
    (
        "sigmoid",
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.25},
        "f_dpo",
        {**B, "divergence": "alpha", "alpha": 0.75},
    ),
]


@pytest.mark.parametrize(("loss_type", "settings", "name", "parameters"), SAME)
@pytest.mark.parametrize("seed", range(3))
def test_the_same_loss_has_the_same_value(loss_type, settings, name, parameters, seed):
    rows = Rows(seed)
    assert ours(rows, name, **parameters) == pytest.approx(theirs(rows, loss_type, **settings), rel=2e-5)


def differs(one: float, other: float) -> bool:
    return abs(one - other) > 1e-3


def test_known_differences():
    """Choices of TRL that Afzal does not follow; see docs/objectives.md."""
    rows = Rows()
    assert theirs(rows, "sigmoid", label_smoothing=0.4) == theirs(rows, "sigmoid"), "label_smoothing is ignored there"
    assert differs(theirs(rows, "sigmoid", label_smoothing=0.4), ours(rows, "cdpo", **B, label_smoothing=0.4))
    assert differs(theirs(rows, "ipo"), ours(rows, "ipo", **B)), "a mean per token there, the paper's sum here"
    alpha = {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.25}
    assert differs(theirs(rows, "sigmoid", **alpha), ours(rows, "f_dpo", **B, divergence="alpha", alpha=0.25))
    shifted = ours(rows, "bco_pair", **B, state={"shift": 0.5})
    assert differs(theirs(rows, "bco_pair"), shifted), "no shift there"


def test_wpo_is_the_same_until_a_pair_of_weights_exceeds_one():
    rows = Rows()
    rows.log_sum_p2 = rows.policy.abs() * 0
    assert ours(rows, "wpo", **B) == pytest.approx(theirs(rows, "sigmoid", use_weighting=True), rel=2e-5)
    rows.log_sum_p2 = rows.policy - 1.0
    assert theirs(rows, "sigmoid", use_weighting=True) == pytest.approx(math.e**2 * theirs(rows, "sigmoid"), rel=1e-4)
    assert ours(rows, "wpo", **B) == pytest.approx(ours(rows, "dpo", **B), rel=1e-6)


def test_a_weighted_list_is_the_weighted_sum():
    """MPO's list; its likelihood term is one mean over the batch's tokens, as ``nll`` is over the update's."""
    rows = Rows()
    listed = theirs(rows, ["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0])
    total = 0.0
    for term in bind("0.8*sigmoid + 0.2*bco_pair + 1.0*nll", B):
        if term.name == "sft":
            total += term.weight * float(-rows.policy[:N][rows.mask[:N].bool()].mean())
        else:
            extra = {"state": {"shift": 0.0}} if term.name == "bco_pair" else {}
            total += term.weight * ours(rows, term.name, **term.parameters, **extra)
    assert total == pytest.approx(listed, rel=2e-5)


def _means(rows: Rows) -> tuple[Tensor, Tensor]:
    mean = (rows.policy * rows.mask).sum(1) / rows.mask.sum(1)
    return mean[:N], mean[N:]


def test_simpo_alphapo_and_orpo_have_the_same_value():
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    rows = Rows()
    here = SimpleNamespace(device="cpu")
    made = {"accelerator": here, "label_smoothing": 0.0, "loss_type": "simpo", "simpo_gamma": 0.5, "beta": 2.0}
    simpo = CPOTrainer.cpo_loss(SimpleNamespace(**made, alpha=0.0), *_means(rows))[0].mean()
    assert ours(rows, "simpo", beta=2.0, gamma=0.5) == pytest.approx(float(simpo), rel=2e-5)
    alphapo = CPOTrainer.cpo_loss(SimpleNamespace(**made, alpha=0.25), *_means(rows))[0].mean()
    assert ours(rows, "alphapo", beta=2.0, gamma=0.5, alpha=0.25) == pytest.approx(float(alphapo), rel=2e-5)
    chosen, rejected = _means(rows)
    ratio = ORPOTrainer.odds_ratio_loss(SimpleNamespace(beta=0.2, accelerator=here), chosen, rejected)[0]
    assert ours(rows, "orpo", lam=0.2) == pytest.approx(float((-chosen - ratio).mean()), rel=2e-5)
