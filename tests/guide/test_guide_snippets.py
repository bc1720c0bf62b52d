"""Every snippet of the guide runs on a tiny real model: its own lines, with its placeholders filled in.

The classes that a snippet defines are those of ``afzal.guide``; placeholders are the names that the guide leaves open
(``YourLanguageModel``, ``dataloader``, ``compute_unsafe_score``, log-probs and indices).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_models import make

from afzal import guide
from afzal.guide import (
    ConstitutionalDPOTrainer,
    DPOTrainer,
    DPOTrainerWithLoRA,
    ProbabilisticDPOTrainer,
    sequence_logps,
)

GUIDE = Path(__file__).resolve().parents[3] / "shared" / "docs" / "guide.uz.txt"
LN2 = math.log(2)

TRAINER = """
model = YourLanguageModel() # Initialize your model
ref_model = YourLanguageModel() # Load pre-trained reference model
trainer = DPOTrainer(model, ref_model)
for batch in dataloader:
    loss = trainer.train_step(batch)
    print(f"Loss: {loss}")
"""
LORA = """
base_model = YourLargeLanguageModel()
dpo_trainer = DPOTrainerWithLoRA(base_model, ref_model)
"""
PROBABILISTIC = """
trainer = ProbabilisticDPOTrainer(model, ref_model)
loss = trainer.compute_loss(pi_logps, ref_logps, yw_idxs, yl_idxs, preference_prob=0.8) # 80% confidence in preference
"""
CONSTITUTIONAL = """
def safety_constraint(model, pi_logps, ref_logps, yw_idxs, yl_idxs):
    # Implement safety checking logic
    unsafe_score = compute_unsafe_score(model, pi_logps, ref_logps)
    return torch.relu(unsafe_score - 0.5) # Penalize if unsafe score > 0.5
constraints = [safety_constraint]
trainer = ConstitutionalDPOTrainer(model, ref_model, constraints=constraints)
"""
SNIPPETS = {"trainer": TRAINER, "lora": LORA, "probabilistic": PROBABILISTIC, "constitutional": CONSTITUTIONAL}


def batch(seed: int = 0, n_pairs: int = 3, length: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randint(3, 97, (2 * n_pairs, length), generator=torch.Generator().manual_seed(seed))
    return x, torch.arange(0, 2 * n_pairs, 2), torch.arange(1, 2 * n_pairs, 2)


def unsafe_score(model: Any, pi_logps: torch.Tensor, ref_logps: torch.Tensor) -> torch.Tensor:
    """How likely the last sequence, taken as the unsafe one, has become: above 0.5, with a gradient."""
    return torch.sigmoid(pi_logps[-1] - ref_logps[-1] + 1.0)


def places() -> dict[str, Any]:
    """The names that the guide leaves undefined."""
    x, yw, yl = batch()
    model, reference = make("llama"), make("llama")
    return {
        "torch": torch,
        "YourLanguageModel": lambda: make("llama"),
        "YourLargeLanguageModel": lambda: make("llama"),
        "dataloader": [batch(seed) for seed in range(3)],
        "model": model,
        "ref_model": reference,
        "pi_logps": sequence_logps(model, x),
        "ref_logps": sequence_logps(reference, x).detach(),
        "yw_idxs": yw,
        "yl_idxs": yl,
        "compute_unsafe_score": unsafe_score,
        **{name: getattr(guide, name) for name in vars(guide) if name.endswith(("Trainer", "TrainerWithLoRA"))},
    }


@pytest.mark.parametrize("name", SNIPPETS)
def test_the_snippet_runs(name, capsys):
    namespace = places()
    exec(compile(SNIPPETS[name], f"guide:{name}", "exec"), namespace)
    trainer = namespace.get("dpo_trainer", namespace.get("trainer"))
    if name == "trainer":
        assert capsys.readouterr().out.startswith(f"Loss: {LN2:.4f}"[:10])
    if name == "probabilistic":
        loss, rewards = namespace["loss"]
        assert float(loss) == pytest.approx(LN2)
        assert rewards.shape == (6,)
    before = [trainer.train_step(batch()) for _ in range(2)]
    assert before[0] > 0


@pytest.mark.shared
def test_the_snippets_are_the_guides_own_lines():
    if not GUIDE.exists():
        pytest.skip("the guide is not here")
    squeeze = lambda text: "".join(text.split())  # noqa: E731
    guide_text = squeeze(GUIDE.read_text(encoding="utf-8"))
    for name, snippet in SNIPPETS.items():
        assert squeeze(snippet) in guide_text, name


def test_lora_starts_at_ln2_trains_adapters_only_and_leaves_the_base_as_it_was():
    model = make("llama", attention_dropout=0.2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trainer = DPOTrainerWithLoRA(model, lr=1e-2, lora_rank=2)
    losses = [trainer.train_step(batch()) for _ in range(12)]
    assert losses[0] == pytest.approx(LN2, abs=1e-5)
    assert losses[-1] < 0.5
    names = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert names
    assert all("lora_" in n for n in names)
    after = {k.replace(".base_layer", ""): v for k, v in model.state_dict().items() if "lora_" not in k}
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    with pytest.raises(ValueError, match="ref_model is model itself"):
        DPOTrainerWithLoRA(model, model)


def test_probabilistic_uses_the_reference_and_a_probability_per_pair():
    pi = torch.tensor([1.0, 0.0, 0.0, 2.0], requires_grad=True)
    ref, yw, yl = torch.tensor([0.5, 0.0, 0.0, 0.0]), torch.tensor([0, 2]), torch.tensor([1, 3])
    trainer = ProbabilisticDPOTrainer(make("llama"), beta=1.0)
    loss, rewards = trainer.compute_loss(pi, ref, yw, yl, torch.tensor([0.8, 0.3]))
    u = torch.tensor([0.5, -2.0])
    by_hand = [
        -p * math.log(1 / (1 + math.exp(-x))) - (1 - p) * math.log(1 / (1 + math.exp(x)))
        for p, x in zip((0.8, 0.3), u.tolist(), strict=True)
    ]
    assert float(loss.detach()) == pytest.approx(sum(by_hand) / 2, abs=1e-6)
    assert rewards.tolist() == [0.5, 0.0, 0.0, 2.0]
    one = trainer.compute_loss(pi, ref, yw, yl, 1.0)[0]
    torch.testing.assert_close(one, DPOTrainer.compute_loss(trainer, pi, ref, yw, yl)[0])
    x, w, v = batch()
    trainer.train_step((x, w, v, torch.tensor([0.9, 0.5, 0.1])))
    for wrong in (1.5, torch.tensor([0.5, 0.5, 0.5])):
        with pytest.raises(ValueError, match="preference_prob"):
            trainer.compute_loss(pi, ref, yw, yl, wrong)


def test_a_constraint_is_added_to_the_loss_and_its_gradient_counts():
    trainer = ConstitutionalDPOTrainer(make("llama"), lr=1e-2, constraints=[lambda m, pi, ref, w, v: -pi[0]])
    plain = DPOTrainer(make("llama"), lr=1e-2)
    for t in (trainer, plain):
        for _ in range(5):
            t.train_step(batch())
    raised, other = (float(sequence_logps(t.model, batch()[0])[0]) for t in (trainer, plain))
    assert raised > other + 1, "the constraint asks for a likelier first sequence"


def test_an_inactive_constraint_leaves_the_gradient_as_it_was():
    results = []
    for constraints in ([], [lambda m, pi, ref, w, v: torch.relu(pi.sum() - 1e6)]):
        trainer = ConstitutionalDPOTrainer(make("llama"), constraints=constraints)
        trainer.train_step(batch())
        results.append([p.grad for p in trainer.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_constraint_may_ask_for_the_batch():
    seen = []

    def constraint(model, pi_logps, ref_logps, yw_idxs, yl_idxs, x):
        seen.append(x)
        return pi_logps.mean() * 0.0

    given = batch()
    ConstitutionalDPOTrainer(make("llama"), constraints=[constraint]).train_step(given)
    assert seen[0] is given[0]


@pytest.mark.parametrize(
    ("value", "said"),
    [(lambda pi: torch.tensor(0.7), "has no gradient"), (lambda pi: pi, "scalar"), (lambda pi: 0.7, "scalar")],
)
def test_a_constraint_that_cannot_act_is_refused(value, said):
    trainer = ConstitutionalDPOTrainer(make("llama"), constraints=[lambda m, pi, ref, w, v: value(pi)])
    with pytest.raises(ValueError, match=said):
        trainer.train_step(batch())
