"""Samples: the same text with either decoding method and any batch size, from the model's own distribution."""

import numpy as np
import pytest
import torch
import transformers
from helpers_models import OTHER_FAMILIES, SHARING_FAMILIES, VOCABULARY, make
from scipy import stats

from afzal.errors import AfzalError
from afzal.generate import Sampling, as_trees, choose_decoding, sample, shared_prompts
from afzal.generate.rows import Row, TokenBuffer, batches, rows_of
from afzal.lab import exact, language
from afzal.model.adapters import Adapter, add_adapter
from afzal.model.attention import use_tree_attention
from afzal.model.decode_cache import DecodeCache, merged
from afzal.model.decoding import decode_attention, next_logits, read_prompts
from afzal.model.load import add_lora
from afzal.model.logprobs import score
from afzal.model.probe import choose_sharing
from afzal.tokens.batch import collate

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12], [5, 6, 7], [20, 21, 22, 23, 24], [30, 31, 32]]
SAMPLING = Sampling(max_new_tokens=14)


def texts(samples):
    return [(s.prompt_index, s.ids.tolist(), s.stop) for s in samples]


def flatter(family, seed=0):
    """A model whose answers have all lengths: its logits are flattened and the end (2, 3) is made likelier."""
    model = make(family, seed)
    head = model.get_output_embeddings()
    with torch.no_grad():
        bias = torch.zeros(VOCABULARY)
        bias[[2, 3]] = 3.0
        head.weight.mul_(0.3)
    head.register_forward_hook(lambda _m, _a, out: out + bias)
    return model


@pytest.mark.parametrize("family", SHARING_FAMILIES)
def test_shared_decoding_agrees_with_the_models_own_generate(family):
    model = flatter(family)
    assert choose_decoding(model) == ("shared", "")
    shared = sample(model, PROMPTS, eos=[2, 3], n=4, sampling=SAMPLING)
    stock = sample(model, PROMPTS, eos=[2, 3], n=4, sampling=SAMPLING, decoding="stock")
    assert texts(shared) == texts(stock)
    assert [s.prompt_index for s in shared] == [i for i in range(5) for _ in range(4)]
    for a, b in zip(shared, stock, strict=True):
        np.testing.assert_allclose(a.logps, b.logps, atol=1e-4)
    lengths = {len(s.ids) for s in shared}
    assert len(lengths) > 2, "rows must leave at different steps for this to test anything"


@pytest.mark.parametrize("family", [*SHARING_FAMILIES, *OTHER_FAMILIES])
def test_log_probs_are_those_of_the_scorer(family):
    model = flatter(family)
    drawn = sample(model, PROMPTS, eos=[2, 3], n=3, sampling=SAMPLING, seed=1)
    sharing, _ = choose_sharing(model)
    with torch.no_grad():
        scored = score(model, collate(as_trees(drawn, PROMPTS), sharing)).token_logps
    torch.testing.assert_close(torch.from_numpy(np.concatenate([s.logps for s in drawn])), scored, atol=1e-4, rtol=0)


@pytest.mark.parametrize("decoding", ["shared", "stock"])
def test_batch_size_changes_no_text(decoding):
    model = flatter("qwen2")
    draw = lambda rows: sample(  # noqa: E731
        model, PROMPTS, eos=[2, 3], n=4, sampling=SAMPLING, seed=5, rows_per_batch=rows, decoding=decoding
    )
    whole = texts(draw(64))
    for rows in (1, 3, 4, 9):
        assert texts(draw(rows)) == whole
    assert len({tuple(ids) for _, ids, _ in whole}) > 10


def test_a_prompts_samples_do_not_depend_on_how_many_there_are_or_on_the_other_prompts():
    model = flatter("llama")
    many = texts(sample(model, PROMPTS, eos=[2], n=6, sampling=SAMPLING, seed=2))
    few = texts(sample(model, PROMPTS[:2], eos=[2], n=2, sampling=SAMPLING, seed=2))
    assert few == [many[0], many[1], many[6], many[7]]
    assert texts(sample(model, PROMPTS[:2], eos=[2], n=2, sampling=SAMPLING, seed=3)) != few


@pytest.mark.parametrize("decoding", ["shared", "stock"])
def test_samples_have_the_enumerated_distribution(decoding):
    """All 1555 responses of the enumerable language: chi-square over cells of at least 5, and total variation."""
    model = language.new_model(3).eval()
    with torch.no_grad():
        for p in model.model.parameters():
            p.mul_(2 if p.dim() > 1 else 1)
        model.lm_head.weight[: language.N_CONTENT].mul_(4)
        model.lm_head.bias[language.EOS] += 1.0
    prompt = np.array([[4, 1, 3]])
    n = 20_000 if decoding == "shared" else 4_000
    probabilities = np.exp(exact.log_policy(model, prompt))[0]
    drawn = sample(
        model,
        [[4, 1, 3, language.SEP]],
        eos=[language.EOS],
        n=n,
        sampling=Sampling(language.MAX_LENGTH),
        seed=11,
        rows_per_batch=5_000,
        decoding=decoding,
    )
    spelled = ["".join(language.VOCABULARY[t] for t in s.ids) for s in drawn]
    counts = np.bincount([language.response_index(t) for t in spelled], minlength=len(probabilities))
    assert counts.sum() == n
    large = probabilities * n >= 5
    assert large.sum() > 50
    observed = np.append(counts[large], counts[~large].sum())
    expected = np.append(probabilities[large], probabilities[~large].sum()) * n
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 0.01
    reported = np.array([s.logps.sum() for s in drawn])
    truth = np.log(probabilities)[[language.response_index(t) for t in spelled]]
    np.testing.assert_allclose(reported, truth, atol=1e-4)


def test_limits_on_length_and_reasons_to_stop():
    model = flatter("llama")
    drawn = sample(model, PROMPTS, eos=[2, 3], n=8, sampling=Sampling(9, min_new_tokens=4))
    for s in drawn:
        ended = s.ids[-1] in (2, 3)
        assert s.stop == ("eos" if ended else "length")
        assert 5 <= len(s.ids) <= 9 if ended else len(s.ids) == 9
        assert not set(s.ids[:-1].tolist()) & {2, 3}
        assert s.ids.dtype == np.int32
        assert s.logps.dtype == np.float32
        assert len(s.logps) == len(s.ids)
    assert {s.stop for s in drawn} == {"eos", "length"}


def test_without_ends_every_sample_has_full_length():
    drawn = sample(flatter("gpt2"), PROMPTS[:2], eos=[], n=2, sampling=Sampling(7))
    assert [(len(s.ids), s.stop) for s in drawn] == [(7, "length")] * 4


def test_answers_longer_than_the_first_buffers():
    model = make("gemma2")
    shared, stock = (
        sample(model, PROMPTS[:2], eos=[], sampling=Sampling(150), decoding=d) for d in ("shared", "stock")
    )
    assert texts(shared) == texts(stock)


@pytest.mark.parametrize("n", [1, 3, 11], ids="{} answers".format)
@pytest.mark.parametrize("family", SHARING_FAMILIES)
def test_waiting_rows_take_the_place_of_finished_ones(family, n, monkeypatch):
    """Eight places for up to 264 rows: cohorts of different ages are decoded together, and merged if they are many."""
    model, merges, rows_per_step = flatter(family), [], []
    monkeypatch.setattr(shared_prompts, "_COHORTS", 2)
    monkeypatch.setattr(shared_prompts, "merged", lambda a, b: merges.append(1) or merged(a, b))
    monkeypatch.setattr(
        shared_prompts, "next_logits", lambda m, t, *caches: rows_per_step.append(len(t)) or next_logits(m, t, *caches)
    )
    sizes = np.random.default_rng(n).integers(1, 12, 24)
    prompts = [list(range(4 + k % 9, 4 + k % 9 + int(size))) for k, size in enumerate(sizes)]
    few = sample(model, prompts, eos=[2, 3], n=n, sampling=Sampling(40), rows_per_batch=8)
    steps = len(rows_per_step)
    assert merges
    assert max(rows_per_step) <= 8
    many = sample(model, prompts, eos=[2, 3], n=n, sampling=Sampling(40), rows_per_batch=1000)
    assert texts(few) == texts(many)
    for a, b in zip(few, many, strict=True):
        np.testing.assert_allclose(a.logps, b.logps, atol=1e-4)
    in_turn = batches(sorted(few, key=lambda s: (-sizes[s.prompt_index], s.prompt_index)), n, 8)
    assert steps < sum(max(len(s.ids) for s in batch) for batch in in_turn), "as if each batch waited for the last"


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_waiting_rows_have_virtual_tokens_too(kind, monkeypatch):
    model = add_adapter(make("llama"), Adapter(kind, virtual_tokens=3))
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.copy_(torch.randn(p.shape, generator=noise))
    monkeypatch.setattr(shared_prompts, "_COHORTS", 2)
    few, many = (
        sample(model, PROMPTS, eos=range(2, 6), n=9, sampling=SAMPLING, rows_per_batch=rows, decoding="shared")
        for rows in (4, 100)
    )
    assert texts(few) == texts(many)
    assert len({len(s.ids) for s in few}) > 5
    for a, b in zip(few, many, strict=True):
        np.testing.assert_allclose(a.logps, b.logps, atol=1e-4)


def test_prompts_read_in_several_passes(monkeypatch):
    model = flatter("mistral-sliding")
    whole = sample(model, PROMPTS, eos=[2, 3], n=2, sampling=SAMPLING)
    read = read_prompts
    monkeypatch.setattr("afzal.generate.shared_prompts.read_prompts", lambda *a: read(*a, tokens_per_forward=8))
    assert texts(sample(model, PROMPTS, eos=[2, 3], n=2, sampling=SAMPLING)) == texts(whole)


def test_greedy_is_transformers_greedy():
    model = make("llama")
    drawn = sample(model, PROMPTS, eos=[2], sampling=Sampling(10, temperature=0))
    for prompt, s in zip(PROMPTS, drawn, strict=True):
        out = model.generate(torch.tensor([prompt]), max_new_tokens=10, do_sample=False, eos_token_id=2)
        assert out[0, len(prompt) :].tolist() == s.ids.tolist()


@pytest.mark.parametrize("decoding", ["shared", "stock"])
def test_the_model_and_the_random_numbers_are_left_as_they_were(decoding):
    model = flatter("llama")
    use_tree_attention(model)
    model.train()
    settings = model.generation_config
    before = torch.get_rng_state()
    sample(model, PROMPTS, eos=[2], sampling=SAMPLING, decoding=decoding)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert model.config._attn_implementation == "afzal_tree"
    assert model.generation_config is settings


def test_the_models_own_generation_settings_do_not_change_the_distribution():
    model = flatter("bloom")
    plain = texts(sample(model, PROMPTS, eos=[2, 3], n=3, sampling=SAMPLING))
    model.generation_config = transformers.GenerationConfig(repetition_penalty=5.0, top_k=2, min_new_tokens=9)
    assert texts(sample(model, PROMPTS, eos=[2, 3], n=3, sampling=SAMPLING)) == plain


def test_adapters_act():
    plain = make("llama")
    before = texts(sample(plain, PROMPTS, eos=[2], sampling=SAMPLING))
    adapted = add_lora(plain, rank=2, alpha=8.0)
    assert texts(sample(adapted, PROMPTS, eos=[2], sampling=SAMPLING)) == before
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.5)
    shared, stock = (sample(adapted, PROMPTS, eos=[2], sampling=SAMPLING, decoding=d) for d in ("shared", "stock"))
    assert texts(shared) == texts(stock) != before


def test_bf16_weights():
    model = flatter("qwen3").to(torch.bfloat16)
    assert choose_decoding(model)[0] == "shared"
    drawn = sample(model, PROMPTS, eos=[2, 3], n=3, sampling=SAMPLING)
    choose_sharing(model)
    with torch.no_grad():
        scored = score(model, collate(as_trees(drawn, PROMPTS), "shared")).token_logps
    gaps = torch.from_numpy(np.concatenate([s.logps for s in drawn])) - scored
    assert gaps.abs().max() < 0.15


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("group", [[0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2]], ids=["as many rows each", "not as many"])
@pytest.mark.parametrize(
    ("window", "softcap", "sunk"), [(None, None, False), (None, 2.0, True), (6, None, False), (24, None, True)]
)
def test_attention_of_the_next_token_is_that_by_hand(dtype, group, window, softcap, sunk):
    """Prompts of 3, 9 and 5 tokens and 40 tokens after each: the suffix buffer grows twice."""
    heads, each, width, lengths, steps = 2, 3, 8, [3, 9, 5], 40
    drawn = torch.Generator().manual_seed(len(group))
    prompts = torch.randn(2, len(lengths), heads, max(lengths), width, generator=drawn).to(dtype)
    suffixes = torch.randn(2, steps, len(group), heads, width, generator=drawn).to(dtype)
    query = torch.randn(len(group), heads * each, width, generator=drawn).to(dtype)
    sinks = torch.randn(heads * each, generator=drawn) if sunk else None
    layer, cache = torch.nn.Module(), DecodeCache(torch.tensor(lengths), torch.tensor(group))
    how = {"decode": cache, "sliding_window": window, "softcap": softcap, "s_aux": sinks}
    cache.filling = slice(0, len(lengths))
    decode_attention(layer, prompts[0].repeat_interleave(each, dim=1), *prompts, None, **how)
    cache.filling = None
    for step in range(steps):
        own = (t[step].transpose(0, 1)[None] for t in suffixes)
        actual = decode_attention(layer, query.transpose(0, 1)[None], *own, None, **how)[0][0]
        cache.written += 1
        if step in (0, 15, 16, steps - 1):
            for row, prompt in enumerate(group):
                keys, values = (
                    torch.cat([p[prompt, :, : lengths[prompt]], s[: step + 1, row].transpose(0, 1)], dim=1).double()
                    for p, s in zip(prompts, suffixes, strict=True)
                )
                keys, values = (t[:, -window:] if window else t for t in (keys, values))
                for head in range(heads * each):
                    scores = keys[head // each] @ query[row, head].double() * width**-0.5
                    weights = (softcap * torch.tanh(scores / softcap) if softcap else scores).exp()
                    total = weights.sum() + (sinks[head].double().exp() if sunk else 0)
                    expected = weights @ values[head // each] / total
                    gap = (actual[row, head].double() - expected).abs().max()
                    assert gap < (1e-5 if dtype == torch.float32 else 3e-2)


def test_a_family_off_the_list_uses_the_stock_method_and_says_why():
    way, reason = choose_decoding(make("bloom"))
    assert way == "stock"
    assert "bloom" in reason
    with pytest.raises(AfzalError, match="bloom"):
        sample(make("bloom"), PROMPTS, eos=[2], decoding="shared")


@pytest.mark.parametrize("fault", ["positions", "rows", "prompt"])
def test_the_trial_notices_a_cache_that_goes_wrong(fault, monkeypatch):
    cache = DecodeCache
    if fault == "positions":
        monkeypatch.setattr(cache, "positions", lambda self: (self.lengths[self.group] + self.written + 1)[None])
    elif fault == "rows":
        monkeypatch.setattr(cache, "to_rows", lambda self, grid: grid.flatten(0, 1)[: len(self.group)])
    else:
        monkeypatch.setattr(cache, "hidden_prompt", lambda self, window: None)
    way, reason = choose_decoding(make("gemma2", seed=9))
    assert way == "stock"
    assert "differ by" in reason or "does not reach" in reason


def test_batches_keep_a_prompts_rows_together_and_sort_by_length():
    made = batches(rows_of({0: 3, 1: 9, 2: 5}, n=4), n=4, size=9)
    assert [[(r.prompt, r.sample) for r in b] for b in made] == [
        [(1, k) for k in range(4)] + [(2, k) for k in range(4)],
        [(0, k) for k in range(4)],
    ]
    assert [len(b) for b in batches(rows_of({0: 1}, n=7), n=7, size=3)] == [3, 3, 1]


def test_an_answer_loses_the_token_that_ended_it_and_no_other():
    """Two rows of 3 tokens: the first writes the end (2) immediately, the second never does."""
    written = TokenBuffer([Row(0, 0, 0), Row(1, 0, 1)], [2], Sampling(max_new_tokens=3), 0, torch.device("cpu"))
    written.ids[:] = torch.tensor([[4, 2, 0], [5, 6, 7]])
    ended, cut = written.samples()
    assert (ended.stop, ended.ids.tolist(), ended.answer.tolist()) == ("eos", [4, 2], [4])
    assert (cut.stop, cut.ids.tolist(), cut.answer.tolist()) == ("length", [5, 6, 7], [5, 6, 7])
