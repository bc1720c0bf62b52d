"""Reward models: `transformers`' own classifiers read at the last scored token: alone, padded, packed, in ensembles."""

import math

import numpy as np
import pytest
import torch
from helpers_models import SHARING_FAMILIES, make, random_trees
from helpers_tokenizers import byte_tokenizer
from transformers import AutoModelForSequenceClassification

import afzal.model.reward as reward_module
from afzal.errors import AfzalError
from afzal.model.attention import stock_implementation
from afzal.model.load import add_lora
from afzal.model.logprobs import score
from afzal.model.probe import choose_sharing
from afzal.model.reward import (
    HEADS_FILE,
    blank_reward_model,
    choose_pad,
    ensemble,
    head_scores,
    is_reward_model,
    load_reward_model,
    n_heads,
    save_reward_model,
    shift_of,
)
from afzal.objectives import get
from afzal.tokens.batch import collate
from afzal.tokens.tree import Branch, Tree, tree
from afzal.train.evaluate import batch_pairs
from afzal.train.optim import trainable

UNKNOWN = ["cohere", "cohere2", "granite"]  # transformers has no classifier for these


@pytest.fixture
def folder(tmp_path):
    make("llama", vocab_size=len(byte_tokenizer())).save_pretrained(tmp_path / "trunk")
    return tmp_path


def fresh(tmp_path, family="llama", heads=1, **overrides):
    make(family, **overrides).save_pretrained(tmp_path / family)
    return load_reward_model(str(tmp_path / family), heads=heads)


@pytest.mark.parametrize("family", SHARING_FAMILIES)
def test_shared_and_padded_scores_are_those_of_the_classifier_itself(family, tmp_path):
    model = fresh(tmp_path, family)
    model.config.get_text_config().pad_token_id = model.config.pad_token_id = 0
    assert choose_sharing(model) == ("shared", "")
    trees = random_trees(5, k=3)  # ids from 3 on, so that 0 is padding only
    with torch.no_grad():
        shared = score(model, collate(trees, "shared")).logps
        model.set_attn_implementation(stock_implementation(model))
        batch = collate(trees, "unshared")
        padded = score(model, batch).logps
        own = model(input_ids=batch.ids, attention_mask=batch.attention_mask).logits[:, 0]
        rows = [torch.tensor(np.concatenate([t.prompt, b.ids]))[None].long() for t in trees for b in t.branches]
        single = torch.cat([model(input_ids=row).logits[:, 0] for row in rows])
    for scores in (shared, padded, own):
        torch.testing.assert_close(scores, single, atol=1e-4, rtol=0)
    assert single.std() > 0.05


def test_the_last_scored_token_is_read_and_not_what_follows_it(tmp_path):
    model = fresh(tmp_path)
    choose_sharing(model)
    whole = tree("a", [5, 6, 7], [[8, 9, 2], [10, 2]])
    tail = Branch(np.array([8, 9, 2, 40, 41], np.int32), np.array([True, True, True, False, False]))
    longer = Tree("a", whole.prompt, (tail, whole.branches[1]))
    with torch.no_grad():
        for sharing in ("shared", "unshared"):
            if sharing == "unshared":
                model.set_attn_implementation("sdpa")
            scores = [score(model, collate([t], sharing)).logps for t in (whole, longer)]
            torch.testing.assert_close(*scores, atol=1e-5, rtol=0)


def test_fresh_heads_are_drawn_small_and_by_their_seed(folder):
    path = str(folder / "trunk")
    heads = load_reward_model(path, heads=40).score.weight.detach()
    assert heads.shape == (40, 32)
    every = reward_module._fresh_heads(200, 4000, 0)
    assert float(every.std()) == pytest.approx(1 / math.sqrt(4001), rel=0.05)
    assert np.corrcoef(every[:2])[0, 1] == pytest.approx(0.5, abs=0.05)
    assert float(reward_module._fresh_heads(1, 4000, 0).std()) == pytest.approx(1 / math.sqrt(4001), rel=0.05)
    assert torch.equal(heads, load_reward_model(path, heads=40).score.weight)
    assert not torch.equal(heads, load_reward_model(path, heads=40, seed=1).score.weight)


def test_the_trunk_is_the_language_models(folder):
    trunk = make("llama", vocab_size=len(byte_tokenizer())).state_dict()
    model = load_reward_model(str(folder / "trunk")).state_dict()
    assert {k for k in model if k != "score.weight"} == {k for k in trunk if not k.startswith("lm_head")}
    assert all(torch.equal(trunk[k], v) for k, v in model.items() if k != "score.weight")


def padded(rows, pad):
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    for r, row in enumerate(rows):
        ids[r, : len(row)] = torch.tensor(row)
    return ids, (torch.arange(width) < torch.tensor([[len(r)] for r in rows])).long()


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("lora", [False, True])
def test_a_saved_folder_is_what_transformers_loads(folder, heads, lora):
    model = load_reward_model(str(folder / "trunk"), heads=heads)
    tokenizer = byte_tokenizer()
    if lora:
        model = add_lora(model, rank=2, alpha=8)
        assert is_reward_model(model)
        assert any("score" in name for name in trainable(model)), "the head must train with the adapters"
        torch.manual_seed(0)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_B" in name or "modules_to_save" in name:
                    p.normal_(std=0.3)
    choose_pad(model, tokenizer, {2})
    choose_sharing(model)
    trees = [tree("a", [5, 6, 7], [[8, 9, 2], [10, 2]]), tree("b", [11], [[12, 13, 14, 15, 2]])]
    with torch.no_grad():
        every = head_scores(model, collate(trees, "shared"))
        ours = score(model, collate(trees, "shared")).logps
    save_reward_model(model, tokenizer, folder / "saved", shift=0.25)
    theirs = AutoModelForSequenceClassification.from_pretrained(folder / "saved")
    assert theirs.config.num_labels == 1
    assert theirs.config.pad_token_id is not None
    rows = [[*t.prompt.tolist(), *b.ids.tolist()] for t in trees for b in t.branches]
    ids, mask = padded(rows, theirs.config.pad_token_id)
    with torch.no_grad():
        together = theirs(input_ids=ids, attention_mask=mask).logits[:, 0]
        alone = torch.cat([theirs(input_ids=torch.tensor([row])).logits[:, 0] for row in rows])
    torch.testing.assert_close(together, ours, atol=1e-4, rtol=0)
    torch.testing.assert_close(alone, ours, atol=1e-4, rtol=0)
    again = load_reward_model(str(folder / "saved"))
    assert n_heads(again) == heads
    assert (folder / "saved" / HEADS_FILE).exists() == (heads > 1)
    assert shift_of(again) == 0.25
    choose_sharing(again)
    with torch.no_grad():
        torch.testing.assert_close(head_scores(again, collate(trees, "shared")), every, atol=1e-5, rtol=0)


def test_the_wrong_number_of_heads_is_refused(folder):
    save_reward_model(load_reward_model(str(folder / "trunk"), heads=2), byte_tokenizer(), folder / "saved")
    with pytest.raises(AfzalError, match="has 2 heads, not 3"):
        load_reward_model(str(folder / "saved"), heads=3)


def test_a_family_without_a_trunk_is_refused_in_words(tmp_path):
    make("mamba").save_pretrained(tmp_path)
    with pytest.raises(AfzalError, match="MambaConfig has no trunk for a reward head"):
        load_reward_model(str(tmp_path))


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("family", UNKNOWN)
def test_a_family_that_transformers_has_no_classifier_for_is_saved_and_loaded(family, lora, tmp_path):
    model = fresh(tmp_path, family, vocab_size=len(byte_tokenizer()))
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / family)
    if lora:
        model = add_lora(model, rank=2, alpha=8)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_B" in name or "modules_to_save" in name:
                    p.normal_(std=0.3)
    tokenizer = byte_tokenizer()
    choose_pad(model, tokenizer, {2})
    batch = collate([tree("a", [5, 6, 7], [[8, 9, 2], [10, 2]])], choose_sharing(model)[0])
    with torch.no_grad():
        expected = head_scores(model, batch)
    save_reward_model(model, tokenizer, tmp_path / "saved", shift=0.25)
    again = load_reward_model(str(tmp_path / "saved"))
    choose_sharing(again)
    with torch.no_grad():
        torch.testing.assert_close(head_scores(again, batch), expected, atol=1e-5, rtol=0)
    assert shift_of(again) == 0.25
    blank, of = blank_reward_model(str(tmp_path / "saved"))
    assert type(blank) is type(again)
    assert of.is_unread(blank.get_input_embeddings().weight)


@pytest.mark.parametrize("heads", [1, 40])  # 32 numbers are read in one piece, 1,280 are not
def test_a_reward_model_that_is_not_read_has_its_heads_and_its_configuration(folder, heads):
    for path in (folder / "trunk", folder / "saved"):
        model = load_reward_model(str(path), heads=heads, seed=3)
        blank, of = blank_reward_model(str(path), heads=heads, seed=3)
        assert torch.equal(blank.score.weight, model.score.weight)
        assert not of.is_unread(blank.score.weight)
        assert of.is_unread(blank.get_input_embeddings().weight)
        assert blank.config.to_dict() == model.config.to_dict()
        assert not blank.training
        if path.name == "trunk":
            save_reward_model(model, byte_tokenizer(), folder / "saved")
    assert not torch.equal(*(blank_reward_model(str(folder / "trunk"), seed=s)[0].score.weight for s in (0, 1)))


def test_a_large_head_in_the_file_is_read_with_the_model(folder, monkeypatch):
    model = load_reward_model(str(folder / "trunk"), seed=3)
    save_reward_model(model, byte_tokenizer(), folder / "saved")
    monkeypatch.setattr("afzal.folders.lazy_weights._SMALL", 16)
    assert torch.equal(blank_reward_model(str(folder / "saved"))[0].score.weight, model.score.weight)


def test_a_padding_token_that_ends_no_response(folder):
    model, tokenizer = load_reward_model(str(folder / "trunk")), byte_tokenizer()
    rows = model.get_input_embeddings().num_embeddings
    choose_pad(model, tokenizer, {2})
    assert model.config.pad_token_id == tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    everything = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id}
    before = len(tokenizer)
    assert model.get_input_embeddings().num_embeddings == rows
    choose_pad(model, tokenizer, everything)
    assert tokenizer.pad_token_id == before
    assert model.config.pad_token_id == before
    assert model.get_input_embeddings().num_embeddings == before + 1
    choose_pad(model, tokenizer, everything)  # which now has a padding token of its own
    choose_pad(model, byte_tokenizer(), everything)  # whose new token has a row already
    assert model.get_input_embeddings().num_embeddings == before + 1


def test_a_row_is_added_to_a_model_that_is_not_read(folder):
    """Only the embedding is read; its new row is the mean of the others, and draws no random numbers."""
    tokenizers = byte_tokenizer(), byte_tokenizer()
    everything = set(range(len(tokenizers[0])))
    model, (blank, of) = load_reward_model(str(folder / "trunk")), blank_reward_model(str(folder / "trunk"))
    choose_pad(model, tokenizers[0], everything)
    torch.manual_seed(7)
    choose_pad(blank, tokenizers[1], everything, of)
    table, expected = blank.get_input_embeddings().weight, model.get_input_embeddings().weight
    assert torch.equal(table, expected)
    torch.testing.assert_close(table[-1], table[:-1].mean(0))
    assert blank.config.to_dict() == model.config.to_dict()
    assert [name for name, p in blank.named_parameters() if p.numel() >= 1024 and not of.is_unread(p)] == [
        "model.embed_tokens.weight"
    ]


def test_an_ensemble_is_one_batch_whose_loss_is_the_sum_over_heads(folder):
    """Values and gradients of N heads in one pass are those of each head on its own resampled items."""
    model = load_reward_model(str(folder / "trunk"), heads=3)
    choose_sharing(model)
    trees = random_trees(6, k=3)
    batch = ensemble(collate(trees, "shared"), 3, seed=5)
    objective = get("bradley_terry")

    def weighted(b, scored):
        pairs = batch_pairs(b)
        losses, _ = objective.fn(scored, None, pairs, centering=0.1)
        return (losses * pairs.weight).sum()

    weighted(batch, score(model, batch)).backward()
    together = model.score.weight.grad.clone()
    plain = collate(trees, "shared")
    counts = [[reward_module._poisson(5, t.item_id, head) for t in trees] for head in range(3)]
    for head in range(3):
        model.zero_grad()
        total = torch.zeros(())
        for t, n in zip(trees, counts[head], strict=True):
            for _ in range(n):  # an item drawn n times appears n times in the resample
                one = collate([t], "shared")
                scores = head_scores(model, one)[:, head]
                scored = type(score(model, one))(scores, torch.arange(len(scores)), len(scores))
                total = total + weighted(one, scored)
        if total.requires_grad:
            total.backward()
            torch.testing.assert_close(model.score.weight.grad[head], together[head], atol=1e-5, rtol=1e-4)
    assert ensemble(plain, 1, 0) is plain
    with torch.no_grad():
        torch.testing.assert_close(score(model, batch).logps.view(3, -1).mean(0), score(model, plain).logps)


def test_bootstrap_weights_are_poisson_and_depend_on_item_head_and_seed_alone():
    counts = np.array([[reward_module._poisson(0, f"item-{i}", h) for i in range(4000)] for h in range(2)])
    for k in range(4):
        expected = math.exp(-1) / math.factorial(k)
        assert np.mean(counts == k) == pytest.approx(expected, abs=4 * math.sqrt(expected / 8000))
    assert abs(np.corrcoef(counts)[0, 1]) < 0.05
    assert counts[0].tolist() != [reward_module._poisson(1, f"item-{i}", 0) for i in range(4000)]
