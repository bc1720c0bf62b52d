"""Planted overlap with a test set, and no finding without overlap."""

import random

from afzal.data import Dataset
from afzal.quality import HeldOutPrompts, Overlap, audit
from afzal.quality.overlap import runs, words_of
from afzal.quality.thresholds import GRAM
from afzal.records import Item, Message, Response

WORDS = [f"w{n}" for n in range(3000)]


def prompts(rng: random.Random, n: int, size: int = 30) -> list[str]:
    return [" ".join(rng.choice(WORDS) for _ in range(size)) for _ in range(n)]


def items(texts) -> list[Item]:
    return [Item(str(n), text, (Response("a"),)) for n, text in enumerate(texts)]


def overlap(train, test):
    rows = items(train)
    extra = [Overlap(HeldOutPrompts(items(test)))]
    return next((f for f in audit(Dataset(rows, "text", len(rows)), extra).findings if f.code == "overlap"), None)


def test_sets_that_share_nothing_stay_silent():
    rng = random.Random(0)
    shared = overlap(prompts(rng, 200), prompts(rng, 100))
    assert (shared.severity, shared.count, shared.total, shared.ids) == ("ok", 0, 100, [])


def test_planted_overlap_is_counted_with_its_rows():
    rng = random.Random(1)
    train, test = prompts(rng, 200), prompts(rng, 100)
    for k in range(10):  # thirteen words of a test prompt, in other words and case
        start = rng.randrange(30 - GRAM)
        train[5 * k] = f"Well: {', '.join(test[k].split()[start : start + GRAM]).upper()}! {train[5 * k]}"
    shared = overlap(train, test)
    assert (shared.severity, shared.count, shared.total, shared.value) == ("major", 10, 100, 0.1)
    assert shared.ids == [str(5 * k) for k in range(10)]
    assert "the prompts of 10 of 200 items" in shared.message
    for k in range(10):
        train[5 * k] = " ".join(test[k].split()[: GRAM - 1])
    assert overlap(train, test).count == 0


def test_short_prompts_overlap_only_as_a_whole():
    assert overlap(["What is love?", "b c"], ["what is LOVE", "a b c d"]).count == 1
    assert overlap(["What is love, really?"], ["what is love"]).count == 0
    assert overlap(["..."], ["!!"]) is None


def test_a_template_that_many_test_prompts_share_is_no_overlap():
    template = "Below is an instruction that describes a task. Write a response that completes the request well"
    test = [f"{template}: {text}" for text in prompts(random.Random(2), 100, 8)]
    train = [f"{template}: {text}" for text in prompts(random.Random(3), 50, 8)]
    assert overlap(train, test).count == 0
    assert overlap([*train, test[7]], test).count == 1


def test_every_row_of_one_long_test_prompt_counts():
    rng = random.Random(4)
    text = prompts(rng, 1)[0]
    assert overlap([text], [text] * 40 + prompts(rng, 5)).count == 40


def test_system_messages_are_left_out_and_unspaced_writing_is_split_by_characters():
    chat = (Message("system", "be kind"), Message("user", "Hello, you"))
    assert words_of(chat) == ["hello", "you"]
    assert words_of("\u4f60\u597d, world") == ["\u4f60", "\u597d", "world"]
    assert len(list(runs(["a"] * 20))) == 8
    assert list(runs([])) == []
    assert set(runs(["a"])) != set(runs(["a"] * GRAM))
