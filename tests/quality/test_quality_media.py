"""Findings about images and sounds, with planted defects and known counts."""

import base64
import json

import pytest
from helpers_media import png, wav

from afzal.data import read
from afzal.quality import audit

PAIR = {"chosen": "A dot, clearly so.", "rejected": "A line."}


def findings(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {one.code: one for one in audit(read(path), deep="small").findings}


def inline(kind, content):
    return f"data:{kind}/x;base64,{base64.b64encode(content).decode()}"


def image(n, size=(40, 30), prompt="<image>What?"):
    return {"prompt": prompt, **PAIR, "images": [inline("image", png(n, size))]}


def sound(hertz, seconds, prompt="<audio>What?"):
    return {"prompt": prompt, **PAIR, "audios": [inline("audio", wav(hertz, seconds))]}


def test_sizes_and_lengths_are_counted_per_different_file(tmp_path):
    images = [
        image(1),
        image(1, prompt="<image>And now?"),
        image(2, (10, 200)),
        image(3, (20, 401)),
        image(4, (16, 320)),
    ]
    sounds = [sound(300, 0.05), sound(300, 0.2), sound(300, 31), sound(301, 30)]
    told = findings(tmp_path, *images, *sounds)
    assert (told["odd_images"].count, told["odd_images"].total, told["odd_images"].severity) == (2, 4, "minor")
    assert "1 below 16 pixels, 1 longer than 20 times their width" in told["odd_images"].message
    assert told["odd_images"].ids == ["rows.jsonl:3", "rows.jsonl:4"]
    assert (told["odd_sounds"].count, told["odd_sounds"].total, told["odd_sounds"].severity) == (2, 4, "minor")
    assert told["odd_sounds"].ids == ["rows.jsonl:6", "rows.jsonl:8"]


def test_one_picture_under_two_questions_is_told_and_one_question_about_two_pictures_is_not(tmp_path):
    told = findings(tmp_path, image(1), image(2), image(1, prompt="<image>Why?"), image(1))
    assert (told["repeated_media"].count, told["repeated_media"].total) == (1, 2)
    assert told["repeated_media"].ids == ["rows.jsonl:1", "rows.jsonl:3"]
    assert told["repeated_media"].severity == "ok"


def test_words_that_speak_of_media_that_are_not_there(tmp_path):
    rows = [{"prompt": f"Look {n} at <image>", **PAIR} for n in range(2)] + [{"prompt": "Look.", **PAIR}]
    told = findings(tmp_path, *rows)
    assert (told["missing_media"].count, told["missing_media"].ids) == (2, ["rows.jsonl:1", "rows.jsonl:2"])
    assert "odd_images" not in told
    assert "missing_media" not in findings(tmp_path, image(1), image(2))


def test_two_pictures_under_one_text_are_neither_duplicates_nor_contradictions(tmp_path):
    turned = image(2) | {"chosen": PAIR["rejected"], "rejected": PAIR["chosen"]}
    told = findings(tmp_path, image(1), turned, image(3))
    assert [told[c].count for c in ("contradictions", "duplicate_items", "near_duplicates")] == [0, 0, 0]
    told = findings(tmp_path, image(1), image(1) | {"chosen": PAIR["rejected"], "rejected": PAIR["chosen"]}, image(1))
    assert [told[c].count for c in ("contradictions", "duplicate_items")] == [1, 1]


@pytest.mark.parametrize("n", [1, 3])
def test_prompts_with_other_pictures_are_counted_apart(tmp_path, n):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(image(k % n)) + "\n" for k in range(6)))
    assert audit(read(path)).prompts == n
