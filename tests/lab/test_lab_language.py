import json

import numpy as np
import pytest

from afzal.lab import language
from afzal.records import Comparison, labels, preferences


def one_reward(x, y, kappa):
    """The reward of one response, directly from its definition."""
    n = len(y)
    copied = sum(y[t] == x[t] for t in range(min(3, n)))
    rises = sum(y[t + 1] > y[t] for t in range(n - 1))
    repeats = sum(y[t + 1] == y[t] for t in range(n - 1))
    parity = sum(y) % 2 == sum(x) % 2
    return 0.9 * copied + 0.5 * rises - 0.7 * repeats - 0.35 * abs(n - 3) + kappa * (parity - 0.5)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_there_are_1555_different_responses():
    texts = [language.response_text(y) for y in language.RESPONSES]
    assert len(set(texts)) == len(texts) == sum(6**n for n in range(5)) == 1555
    assert [language.response_index(t) for t in texts] == list(range(1555))


@pytest.mark.parametrize("text", ["", "41", "4135.", "41350", "6.", "4|.", "4.1", "..", "4135|"])
def test_text_outside_the_language_has_no_index(text):
    assert language.response_index(text) is None


def test_prompts_are_split_without_overlap_and_always_alike():
    train, held_out = language.prompts()
    texts = [language.prompt_text(x) for x in (*train, *held_out)]
    assert (len(train), len(held_out), len(set(texts))) == (160, 32, 192)
    assert texts[:3] == PINNED_PROMPTS
    assert [language.prompt_text(x) for x in language.prompts(seed=1)[0][:3]] != PINNED_PROMPTS


@pytest.mark.parametrize("kappa", [0.0, 0.8])
def test_reward_is_its_definition(kappa):
    prompt = np.array([[4, 1, 3], [0, 0, 0]])
    rewards = language.reward(prompt, kappa)
    for k in rng().integers(1555, size=200):
        y = [int(t) for t in language.RESPONSES[k] if t >= 0]
        for row, x in enumerate(prompt):
            assert rewards[row, k] == pytest.approx(one_reward(x, y, kappa), abs=1e-9)


def test_the_parity_term_is_not_earned_by_any_one_token():
    """Changing any single token by one flips the term, whatever the other tokens are."""
    prompt = np.array([[2, 5, 0]])
    term = (language.reward(prompt, 0.8) - language.reward(prompt, 0.0))[0].round(9)
    assert set(term) == {-0.4, 0.4}
    for text in ("1302", "40.", "5."):
        for t in range(len(text.rstrip("."))):
            other = text[:t] + str((int(text[t]) + 1) % 6) + text[t + 1 :]
            assert term[language.response_index(text)] == -term[language.response_index(other)]


def test_demonstrations_follow_the_stated_distribution():
    train, _ = language.prompts()
    policy = language.sft_policy(train)
    assert np.abs(policy.sum(1) - 1).max() < 1e-12
    assert np.bincount(language.LENGTHS, policy.mean(0)) == pytest.approx([0.05, 0.15, 0.2, 0.35, 0.25])
    copied = policy[:, language.RESPONSES[:, 0] >= 0] * (
        language.RESPONSES[language.RESPONSES[:, 0] >= 0][None, :, 0] == train[:, :1]
    )
    assert copied.sum(1).mean() / 0.95 == pytest.approx(0.35 + 0.65 / 6)
    drawn = language.sample(policy[:1], np.zeros(40_000, dtype=int), rng())
    counts = np.bincount(drawn, minlength=1555)
    expected = policy[0] * 40_000
    assert abs(((counts - expected) ** 2 / expected).sum() - 1554) < 5 * np.sqrt(2 * 1554)  # chi-square, 5 sigma


def test_pairs_are_independent_samples_without_equal_ones():
    policy = language.sft_policy(np.array([[4, 1, 3], [0, 5, 2]]))
    x, a, b = language.sample_pairs(policy, 30_000, rng())
    assert len(x) == 30_000
    assert (a != b).all()
    assert x.mean() == pytest.approx(0.5, abs=0.02)
    share_empty = 2 * 0.05 * 0.95 / (1 - (policy**2).sum(1).mean())
    assert ((a == 0) | (b == 0)).mean() == pytest.approx(share_empty, abs=0.01)


def test_label_variants():
    gaps = np.repeat([-1.0, 0.0, 2.0], 20_000)
    truth = 1 / (1 + np.exp(-np.array([-1.0, 0.0, 2.0])))

    def rates(p_first):
        return p_first.reshape(3, -1).mean(1)

    assert language.graded(gaps).reshape(3, -1)[:, 0] == pytest.approx(truth)
    assert rates(language.noisy(gaps, rng())) == pytest.approx(truth, abs=0.015)
    certain = language.deterministic(gaps, rng())
    assert rates(certain) == pytest.approx([0, 0.5, 1], abs=0.015)
    assert rates(language.flipped(certain, 0.3, rng(1))) == pytest.approx([0.3, 0.5, 0.7], abs=0.015)
    tied = language.with_ties(gaps, rng(), nu=3.0)
    assert (tied == 0.5).reshape(3, -1).mean(1)[1] == pytest.approx(0.5, abs=0.015)
    assert not (language.with_ties(gaps, rng(), nu=1.0) == 0.5).any()
    faithful, coin, adversary = language.crowd(gaps, (1.0, 0.5, 0.0), rng())
    assert rates(faithful) == pytest.approx(truth, abs=0.015)
    assert rates(coin) == pytest.approx([0.5, 0.5, 0.5], abs=0.015)
    assert rates(adversary) == pytest.approx(1 - truth, abs=0.015)


def test_items_carry_votes_probabilities_ties_and_annotators():
    prompt = np.array([[4, 1, 3]])
    pairs = (np.zeros(4, dtype=int), np.array([1, 2, 3, 4]), np.array([7, 8, 9, 0]))
    items = language.pair_items(prompt, pairs, np.array([1.0, 0.0, 0.5, 0.7]))
    assert [i.prompt for i in items] == ["413|"] * 4
    assert [preferences(i)[0].p for i in items] == [1.0, 1.0, 0.5, 0.7]
    assert [(preferences(i)[0].i, preferences(i)[0].j) for i in items] == [(0, 1), (1, 0), (0, 1), (0, 1)]
    assert items[3].responses[1].turns == "."
    crowd = language.pair_items(prompt, pairs, np.array([[1.0] * 4, [1.0] * 4, [0.0] * 4]))
    assert preferences(crowd[0])[0].p == pytest.approx(2 / 3)
    assert {v.annotator for v in crowd[0].votes if isinstance(v, Comparison)} == {f"annotator-{k}" for k in range(3)}


def test_files_are_ordinary_json_lines(tmp_path):
    train, _ = language.prompts()
    demonstrations = language.sft_items(train, 50, rng())
    rows = [json.loads(s) for s in language.write_demonstrations(demonstrations, tmp_path / "sft.jsonl").open()]
    assert [set(r) for r in rows] == [{"prompt", "completion"}] * 50
    assert all(language.response_index(r["completion"]) is not None and len(r["prompt"]) == 4 for r in rows)
    pairs = (np.zeros(2, dtype=int), np.array([1, 2]), np.array([7, 0]))
    items = language.pair_items(train, pairs, np.array([1.0, 0.0]))
    rows = [json.loads(s) for s in language.write_pairs(items, tmp_path / "pairs.jsonl").open()]
    assert [r["chosen"] for r in rows] == ["0.", "."]
    assert [r["rejected"] for r in rows] == ["00.", "1."]
    assert [labels(i) for i in items] == [(True, False), (False, True)]
    with pytest.raises(ValueError, match="pair-0"):
        language.write_pairs(language.pair_items(train, pairs, np.array([0.5, 1.0])), tmp_path / "ties.jsonl")


def test_tokenizer_round_trip():
    tokenizer = language.tokenizer()
    assert tokenizer("413|035.")["input_ids"] == [4, 1, 3, 6, 0, 3, 5, 7]
    assert tokenizer.decode([4, 1, 3, 6, 0, 7], skip_special_tokens=True) == "413|0."
    assert tokenizer.convert_tokens_to_ids(language.SETTINGS["eos_token"]) == language.EOS


def test_encoded_rows_hold_decisions_only():
    """Every token after the separator is scored; the end after four tokens is cut, as it is forced."""
    from afzal.tokens import encode

    prompt = np.array([[4, 1, 3]])
    items = language.pair_items(prompt, (np.zeros(2, int), np.array([0, 1554]), np.array([8, 1000])), np.ones(2))
    made = encode(items, language.tokenizer(), max_tokens=language.SETTINGS["max_tokens"], eos=language.EOS)
    assert not made.drops
    assert made.counts("cut") == {"response_cut": 2}
    texts = [[r.turns for r in item.responses] for item in items]
    assert texts == [[".", "01."], ["5555", "3233"]]
    for tree, pair in zip(made.trees, texts, strict=True):
        assert tree.prompt.tolist() == [4, 1, 3, language.SEP]
        assert ["".join(language.VOCABULARY[i] for i in b.ids) for b in tree.branches] == pair
        assert all(b.scored.all() for b in tree.branches)


def test_rows_outside_the_language_are_dropped_and_counted():
    from afzal.records import Item, Response
    from afzal.tokens import encode

    item = Item("stray", "413|", (Response("4x."),))
    made = encode([item], language.tokenizer(), max_tokens=8, eos=language.EOS)
    assert not made.trees
    assert list(made.counts("dropped").values()) == [1]


def test_model_folder_is_an_ordinary_one(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    language.save_model(tmp_path, seed=3)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert 100_000 < sum(p.numel() for p in model.parameters()) < 104_000
    assert AutoTokenizer.from_pretrained(tmp_path)("413|2.")["input_ids"] == [4, 1, 3, 6, 2, 7]
    same, other = language.new_model(3), language.new_model(4)
    assert torch.equal(same.lm_head.weight, model.lm_head.weight)
    assert not torch.equal(same.lm_head.weight, other.lm_head.weight)


def test_training_cannot_bring_the_separator_back():
    """Steps that raise the loss of every other symbol leave the barred symbol unchanged, to the last bit."""
    import torch

    model = language.new_model()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    ids = torch.tensor([[4, 1, 3, 6, 2, 0, 5, 1]])
    for _ in range(20):
        logps = model(ids).logits[:, 3:-1].log_softmax(-1)
        logps.gather(-1, ids[:, 4:, None]).sum().clamp(min=-200).backward()  # descent lowers these log-probs
        optimiser.step()
        optimiser.zero_grad()
    assert model.lm_head.bias[language.SEP].item() == -60
    assert model(ids).logits[:, 3:].softmax(-1)[..., language.SEP].max() < 1e-20


PINNED_PROMPTS = ["030|", "152|", "221|"]
