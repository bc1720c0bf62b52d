"""The guide's names, with the semantics that its errata require."""

from __future__ import annotations

import pytest
import torch
from helpers_models import make

from afzal.guide import DPOTrainer, dpo_loss, sequence_logps


def batch(model, n_pairs=3, length=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(3, 97, (2 * n_pairs, length), generator=generator)
    return x, torch.arange(0, 2 * n_pairs, 2), torch.arange(1, 2 * n_pairs, 2)


def test_dpo_loss_gives_per_pair_losses_and_per_sequence_rewards():
    pi, ref = torch.tensor([-1.0, -2.0, -4.0]), torch.tensor([-1.5, -1.5, -4.0])
    losses, rewards = dpo_loss(pi, ref, torch.tensor([0, 0]), torch.tensor([1, 2]), 0.1)
    expected = -torch.nn.functional.logsigmoid(torch.tensor([0.1 * 1.0, 0.1 * 0.5]))
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(rewards, torch.tensor([0.05, -0.05, 0.0]))


def test_rewards_carry_no_gradient_and_losses_do():
    pi = torch.tensor([-1.0, -2.0], requires_grad=True)
    losses, rewards = dpo_loss(pi, torch.tensor([-1.5, -1.5]), torch.tensor([0]), torch.tensor([1]), 0.1)
    losses.sum().backward()
    assert pi.grad[0] < 0 < pi.grad[1], "descent must raise the preferred response's log-prob"
    assert not rewards.requires_grad


@pytest.mark.parametrize(
    ("pi", "ref", "yw", "yl", "message"),
    [
        (torch.zeros(2, 5, 97), torch.zeros(2), [0], [1], r"pi_logps has shape \(2, 5, 97\)"),
        (torch.zeros(2), torch.zeros(3), [0], [1], "differ in shape"),
        (torch.zeros(2), torch.zeros(2), [0, 1], [1], r"must both be \(T,\)"),
        (torch.zeros(2), torch.zeros(2), [0], [2], "yl_idxs points outside the 2 sequences"),
        (torch.zeros(2), torch.zeros(2), [-1], [0], "yw_idxs points outside"),
        (torch.zeros(2), torch.zeros(2), [1], [1], "compares a response with itself"),
    ],
)
def test_wrong_shapes_and_indices_are_named(pi, ref, yw, yl, message):
    with pytest.raises(ValueError, match=message):
        dpo_loss(pi, ref, torch.tensor(yw), torch.tensor(yl), 0.1)


def test_sequence_logps_are_shifted_gathered_and_masked():
    model = make("llama")
    x = torch.tensor([[5, 6, 7, 8]])
    logits = model(input_ids=x).logits.log_softmax(-1)
    by_hand = sum(float(logits[0, t, x[0, t + 1]]) for t in range(3))
    assert float(sequence_logps(model, x)) == pytest.approx(by_hand, abs=1e-5)
    only_last = {"input_ids": x, "response_mask": torch.tensor([[0, 0, 0, 1]])}
    assert float(sequence_logps(model, only_last)) == pytest.approx(float(logits[0, 2, 8]), abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_padding_on_either_side_changes_nothing(family):
    """With absolute and rotary positions; padded positions contain junk."""
    model = make(family)
    x = torch.tensor([[5, 6, 7, 8]])
    alone = sequence_logps(model, x)
    junk = torch.tensor([[11, 12]])
    left = {"input_ids": torch.cat([junk, x], 1), "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1]])}
    right = {"input_ids": torch.cat([x, junk], 1), "attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]])}
    torch.testing.assert_close(sequence_logps(model, left), alone, atol=1e-4, rtol=0)
    torch.testing.assert_close(sequence_logps(model, right), alone, atol=1e-4, rtol=0)


def test_trainer_starts_at_ln2_and_learns():
    model = make("llama", attention_dropout=0.2)
    trainer = DPOTrainer(model, None, beta=0.1, lr=1e-3)
    data = batch(model)
    losses = [trainer.train_step(data) for _ in range(15)]
    assert losses[0] == pytest.approx(0.6931472, abs=1e-5)
    assert losses[-1] < 0.5
    x, yw, yl = data
    margins = sequence_logps(model, x)[yw] - sequence_logps(model, x)[yl]
    reference = sequence_logps(trainer.ref_model, x)
    assert (margins > reference[yw] - reference[yl]).all()


def test_compute_loss_gives_the_mean_and_the_rewards():
    trainer = DPOTrainer(make("llama"), make("llama"), beta=0.5)
    loss, rewards = trainer.compute_loss(
        torch.tensor([-1.0, -2.0]), torch.tensor([-1.0, -2.0]), torch.tensor([0]), torch.tensor([1])
    )
    assert loss.shape == ()
    assert float(loss) == pytest.approx(0.6931472)
    assert rewards.tolist() == [0.0, 0.0]


def test_the_reference_stays_as_it_was_and_is_not_the_model():
    model = make("llama")
    with pytest.raises(ValueError, match="ref_model is model itself"):
        DPOTrainer(model, model)
    trainer = DPOTrainer(model, lr=1e-2)
    before = [p.clone() for p in trainer.ref_model.parameters()]
    trainer.train_step(batch(model))
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.ref_model.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
