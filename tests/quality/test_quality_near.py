"""Near-duplicates of known similarity, and coverage in closed form."""

import random
import string

import numpy as np
import pytest

from afzal.data import Dataset
from afzal.quality import audit
from afzal.quality.near_duplicates import grams, jaccard, near_duplicates, vendi
from afzal.quality.thresholds import NEAR, SMALL_ITEMS
from afzal.records import Comparison, Item, Response


def gram_set(text: str) -> set[str]:
    return {text[k : k + 5] for k in range(len(text) - 4)}


def similar(rng: random.Random, changed: int, size: int = 400) -> tuple[str, str]:
    """Two texts of random letters that differ in this many letters at the end."""
    text = "".join(rng.choice(string.ascii_lowercase) for _ in range(size))
    return text, text[: size - changed] + "".join(rng.choice(string.ascii_uppercase) for _ in range(changed)).lower()


def pairs(texts: list[str]) -> Dataset:
    items = [
        Item(str(n), text, (Response(f"yes {text}"), Response(f"no {text}")), (Comparison(0, 1, "first"),))
        for n, text in enumerate(texts)
    ]
    return Dataset(items, "standard", len(items))


def finding(dataset: Dataset, code: str):
    return next((f for f in audit(dataset, deep="always").findings if f.code == code), None)


def test_the_similarity_is_that_of_sets_of_five_characters():
    rng = random.Random(0)
    for changed in (0, 7, 40, 200, 400):
        one, other = similar(rng, changed)
        a, b = gram_set(one), gram_set(other)
        assert jaccard(grams(one), grams(other)) == len(a & b) / len(a | b)
    assert len(grams("ab\0cdefg")) == 1
    assert jaccard(grams("abc"), grams("x")) == 1.0


def test_planted_near_duplicates_are_found_and_nothing_less_similar():
    rng, texts, near = random.Random(1), [], []
    for changed in (4, 12, 24, 36, 60, 80, 120, 200):
        for _ in range(8):
            one, other = similar(rng, changed)
            a, b = gram_set(one), gram_set(other)
            if len(a & b) / len(a | b) >= NEAR:
                near.append((len(texts) + 1, len(texts)))
            texts += [one, other]
    assert near_duplicates(texts) == near
    assert 20 < len(near) < 40


def test_case_and_white_space_are_folded_and_exact_repeats_left_to_their_own_finding():
    assert near_duplicates(["the same words here", "The  same words HERE"]) == [(1, 0)]
    assert near_duplicates(["the same words here", "the same words here"]) == []


def test_other_answers_to_one_long_prompt_are_no_near_duplicates():
    rng = random.Random(2)
    prompt = similar(rng, 0, 2000)[0]
    answers = ["\0".join((prompt, *similar(rng, 60, 60))) for _ in range(5)]
    assert near_duplicates(answers) == []


def test_ten_thousand_alike_are_each_compared_with_few(monkeypatch):
    import afzal.quality.near_duplicates as near

    compared = []
    real = near._is_near
    monkeypatch.setattr(near, "_is_near", lambda one, other: compared.append(1) or real(one, other))
    base = similar(random.Random(3), 0)[0]
    texts = [f"{base}{n}" for n in range(300)]
    assert len(near_duplicates(texts)) == 299
    assert len(compared) == 299


def test_sound_data_has_no_near_duplicates_and_wide_coverage():
    rng = random.Random(4)
    words = ["".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(3, 9))) for _ in range(2000)]
    dataset = pairs([" ".join(rng.choice(words) for _ in range(30)) for _ in range(200)])
    near, coverage = finding(dataset, "near_duplicates"), finding(dataset, "coverage")
    assert (near.severity, near.count) == ("ok", 0)
    assert coverage.severity == "ok"


def test_repeats_with_a_changed_word_are_found_with_their_rows():
    rng = random.Random(5)
    texts = [similar(rng, 0)[0] for _ in range(60)]
    texts += [text + "x" for text in texts[:6]]
    repeats = finding(pairs(texts), "near_duplicates")
    assert (repeats.severity, repeats.count, repeats.total) == ("minor", 6, 66)
    assert repeats.ids[:4] == ["60", "0", "61", "1"]
    assert repeats.low < repeats.value == 6 / 66 < repeats.high


def test_coverage_counts_groups_of_prompts_that_share_no_word():
    texts = [f"alpha{g} beta{g} gamma{g}" for g in range(4) for _ in range(25)]
    assert vendi(texts) == pytest.approx(4.0)
    assert vendi([f"word{n}" for n in range(50)]) == pytest.approx(50.0)
    assert vendi(["one text"] * 30) == pytest.approx(1.0)
    uneven = ["one thing"] * 75 + ["other matter"] * 25
    # cosines within a group are 1 and between groups 0, so that the eigenvalues of K / n are the groups' shares
    assert vendi(uneven) == pytest.approx(np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))))


def test_prompts_out_of_few_patterns_cover_little():
    narrow = pairs([f"Write a poem about cats, please: take {n}" for n in range(150)])
    assert finding(narrow, "coverage").severity == "minor"
    assert finding(pairs([f"Write a poem about cats {n}" for n in range(60)]), "coverage") is None


def test_large_files_are_compared_only_when_asked():
    few = Dataset([Item(str(n), f"Q{n}", (Response("a"),)) for n in range(SMALL_ITEMS)], "text", SMALL_ITEMS)
    assert not audit(few, deep="small").not_run
    few.items.append(Item("x", "Q", (Response("a"),)))
    left = audit(few, deep="small").not_run
    assert [(one.codes, one.how) for one in left] == [(("near_duplicates", "coverage"), "--deep")]
