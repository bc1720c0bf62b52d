"""Real files, with counts taken from them by hand (by other means than the readers)."""

import csv
import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from afzal.data import read, split
from afzal.errors import AfzalError
from afzal.quality import audit, clean
from afzal.records import labels, media_of, preferences, prompt_key

SHARED = Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.shared

# path: format, rows, items, drops, items left by clean()
COUNTS = {
    "pref/hh_rlhf_harmless_a.jsonl.gz": ("hh_rlhf", 1492, 1488, {"empty_response": 2, "prefix_differs": 2}, 1488),
    "pref/llamafactory_dpo_en_demo.json": ("sharegpt", 300, 300, {}, 295),
    "pref/llamafactory_dpo_zh_demo.json": ("sharegpt", 300, 300, {}, 289),
    "pref/llamafactory_kto_en_demo.json": ("unpaired_messages", 300, 300, {}, 300),
    "pref/llamafactory_v1_dpo_demo.jsonl": ("message_lists", 10, 10, {}, 10),
    "pref/anthropic_evals_agreeableness.jsonl": ("anthropic_evals", 1000, 1000, {}, 1000),
    "pref/oasst_trees.jsonl": ("oasst", 50, 97, {"unranked_replies (part)": 23}, 97),
    "pref/uzlib_processed.csv": ("multiple_choice", 1129, 1129, {}, 1129),
    "derived/stories_valence_pairs.jsonl": ("standard", 497, 497, {}, 497),
    "annot/pandalm_human3.json": ("pandalm", 550, 550, {}, 497),
    "annot/llmbar_gold_vs_judges.jsonl": ("alpaca_farm", 234, 234, {}, 234),
    "sft/llamafactory_alpaca_en_demo.json": ("alpaca", 999, 999, {}, 985),
    "sft/llamafactory_v1_sft_demo.jsonl": ("messages", 500, 500, {}, 499),
    "sft/tinystories.jsonl": ("text", 700, 700, {}, 700),
    "prompts/arena_hard_v0.1_question.jsonl": ("prompts", 500, 500, {}, 500),
}


def shared(name):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"the shared data folder has no {name}")
    return path


@pytest.mark.parametrize("name", list(COUNTS))
def test_real_files_give_the_counted_items(name):
    format, rows, items, drops, left = COUNTS[name]
    dataset = read(shared(name))
    assert (dataset.format, dataset.rows, len(dataset.items), dataset.drop_counts) == (format, rows, items, drops)
    assert dataset.rows == dataset.kept + sum(drop.is_complete for drop in dataset.drops)
    assert len(clean(dataset.items)[0]) == left


@pytest.mark.parametrize("name", ["prompts/mt_bench_question.jsonl", "annot/pandalm_judges.jsonl"])
def test_files_of_no_known_format_are_refused_with_their_fields(name):
    with pytest.raises(AfzalError, match="no known format fits") as caught:
        read(shared(name))
    assert "the first row's fields" in caught.value.why


def test_images_and_sounds_of_the_demonstrations_are_where_their_marks_were():
    pictures, sounds = read(shared("media/mllm_demo.json")), read(shared("media/mllm_audio_demo.json"))
    folder = "mllm_demo_data/"
    assert [[m.name for m in media_of(item)] for item in pictures.items] == [
        [f"{folder}{name}.jpg" for name in names] for names in ("11", "2", "3", "11", "2", "3")
    ]
    assert [media_of(item)[0].name for item in sounds.items] == [f"{folder}{x}" for x in ("1.mp3", "2.wav", "3.flac")]
    first, asked = pictures.items[0].prompt[0], sounds.items[2].prompt[0]
    assert [part["type"] for part in first.content] == ["image", "text"]
    assert first.content[1]["text"] == "Who are they?"
    assert media_of((first,))[0].sha256 == "95d292cbe8e7151b277f8c04f670a1bd28bbb36882ed5ac0a486b6e5f6e67a0b"
    assert media_of((asked,))[0].sha256 == "4e25e22555cd16e90edb0a3b49fdcf1fe652b2a1250ab643634db33895c75b41"
    assert "images: 8 (3 different)" in pictures.notes
    assert "sounds: 3 (3 different)" in sounds.notes


def test_hh_transcripts_split_at_the_last_answer():
    path = shared("pref/hh_rlhf_harmless_a.jsonl.gz")
    dataset = read(path)
    assert [d.where.rsplit(":")[-1] for d in dataset.drops] == ["55", "332", "808", "1248"]
    raw = [json.loads(line) for line in gzip.decompress(path.read_bytes()).split(b"\n") if line]
    for item in dataset.items:
        row = raw[int(item.where.rsplit(":")[-1]) - 1]
        for response, side in zip(item.responses, ("chosen", "rejected"), strict=True):
            assert response.turns[0].content == row[side].rsplit("\n\nAssistant:", 1)[1].strip()
        roles = [m.role for m in item.prompt]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        assert preferences(item)[0].i == 0


def test_stories_keep_their_scores_as_margins():
    path = shared("derived/stories_valence_pairs.jsonl")
    raw = [json.loads(line) for line in path.open(encoding="utf-8")]
    margins = [preferences(item)[0].margin for item in read(path).items]
    assert margins == [row["score_chosen"] - row["score_rejected"] for row in raw]
    assert min(margins) >= 2
    train, held_out = split(read(path).items, 0.1, 0)
    assert {prompt_key(i) for i in train}.isdisjoint(prompt_key(i) for i in held_out)
    assert 20 < len(held_out) < 80


def test_anthropic_confidences_become_probabilities():
    path = shared("pref/anthropic_evals_agreeableness.jsonl")
    raw = [json.loads(line) for line in path.open(encoding="utf-8")]
    labels = [(i.responses[p.i].turns, p.p) for i in read(path).items for p in preferences(i)]
    assert labels == [(row["answer_matching_behavior"], row["label_confidence"]) for row in raw]


def test_oasst_ranks_order_all_siblings():
    sizes = Counter(len(item.responses) for item in read(shared("pref/oasst_trees.jsonl")).items)
    assert sizes == {3: 60, 2: 23, 4: 9, 6: 2, 5: 1, 8: 1, 9: 1}
    for item in read(shared("pref/oasst_trees.jsonl")).items:
        best = next(v.response for v in item.votes if v.value == 0)
        assert all(p.j != best for p in preferences(item))
        assert [m.role for m in item.prompt] == ["user", "assistant"] * (len(item.prompt) // 2) + ["user"]


def test_uzbek_gold_answers_and_votes():
    path = shared("pref/uzlib_processed.csv")
    with path.open(encoding="utf-8", newline="") as stream:
        raw = list(csv.DictReader(stream))
    items = read(path).items
    assert [labels(i).index(True) + 1 for i in items] == [int(row["answer"]) for row in raw]
    assert items[0].prompt[0].content == raw[0]["question"]
    voters = [[(v.value, -v.response) for v in i.votes if v.axis == "voters"] for i in items]
    assert sum(-max(v)[1] == labels(i).index(True) for v, i in zip(voters, items, strict=True)) == 811


def test_kto_labels():
    path = shared("pref/llamafactory_kto_en_demo.json")
    raw = json.loads(path.read_text(encoding="utf-8"))
    items = read(path).items
    assert [labels(i)[0] for i in items] == [row["label"] for row in raw]
    assert audit(read(path)).good == 150


def test_pandalm_votes_and_agreement():
    """Agreement of the three people's votes over all rows, computed from the file itself."""
    path = shared("annot/pandalm_human3.json")
    raw = json.loads(path.read_text(encoding="utf-8"))
    said = [[r[f"annotator{k}"] for k in (1, 2, 3)] for r in raw]
    same = sum((a == b) + (a == c) + (b == c) for a, b, c in said)
    report = audit(read(path))
    agreement = next(f for f in report.findings if f.code == "agreement")
    assert (agreement.count, agreement.total) == (same, 3 * len(raw)) == (1520, 1650)
    assert report.annotators == 3
    for item, row in zip(read(path).items, raw, strict=True):
        ones = sum(row[f"annotator{k}"] == 1 for k in (1, 2, 3))
        ties = sum(row[f"annotator{k}"] == 0 for k in (1, 2, 3))
        (pair,) = preferences(item)
        assert (pair.p if pair.i == 0 else 1 - pair.p) == pytest.approx((ones + ties / 2) / 3)


def test_v1_messages_keep_placeholders_as_text():
    item = read(shared("sft/llamafactory_v1_sft_demo.jsonl")).items[0]
    assert item.prompt[0].content == "hi"
    assert "{{name}}" in item.responses[0].turns[0].content


def test_llmbar_polarity():
    path = shared("annot/llmbar_gold_vs_judges.jsonl")
    raw = [json.loads(line) for line in path.open(encoding="utf-8")]
    assert [preferences(i)[0].i + 1 for i in read(path).items] == [row["label"] for row in raw]
