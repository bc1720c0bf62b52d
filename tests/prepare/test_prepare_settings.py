"""Settings of the data that change which rows a run sees: axis, skip_bad, clean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers_models import make
from helpers_runs import dropped_lines
from helpers_tokenizers import byte_tokenizer

from afzal import config
from afzal.errors import AfzalError
from afzal.prepare import Prepared, prepare

# The first answer is always the better one; the second is the safer one in every other row.
TWO_AXES = [
    {
        "prompt": f"Question {n}?",
        "response_0": f"answer one {n}",
        "response_1": f"answer two {n}",
        "better_response_id": 0,
        "safer_response_id": n % 2,
    }
    for n in range(6)
]
PAIR = {"prompt": "Q", "chosen": " yes", "rejected": " no"}


def prepared(folder: Path, rows: list[str], **settings: object) -> Prepared:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(rows) + "\n")
    made = config.make("dpo", model="M", data=str(path), eval_fraction=0, **settings)
    tokenizer = byte_tokenizer()
    return prepare(made, tokenizer=tokenizer, model=make("llama", vocab_size=len(tokenizer)))


def first_wins(result: Prepared) -> list[bool]:
    return [t.preferences[0].i == 0 for t in result.train if t.preferences[0].p != 0.5]


def test_an_axis_keeps_its_own_opinions(tmp_path: Path):
    rows = [json.dumps(row) for row in TWO_AXES]
    assert first_wins(prepared(tmp_path, rows, axis="better")) == [True] * 6
    assert first_wins(prepared(tmp_path, rows, axis="safer")) == [True, False] * 3


def test_an_unknown_axis_names_the_known_ones(tmp_path: Path):
    with pytest.raises(AfzalError, match="no opinion is on the axis 'kinder'\n  try: axis=better or axis=safer"):
        prepared(tmp_path, [json.dumps(row) for row in TWO_AXES], axis="kinder")


def test_damaged_rows_stop_the_run_unless_they_may_be_skipped(tmp_path: Path):
    rows = [json.dumps(PAIR), '{"prompt": "Q2", "chosen": ', json.dumps({**PAIR, "prompt": "Q3"})]
    with pytest.raises(AfzalError, match=r"rows\.jsonl:2"):
        prepared(tmp_path, rows)
    result = prepared(tmp_path, rows, skip_bad=True)
    assert len(result.train) == 2
    assert [line["where"].rpartition(":")[2] for line in dropped_lines(result)] == ["2"]


def test_repeats_are_left_out_and_listed_unless_they_may_stay(tmp_path: Path):
    rows = [json.dumps(PAIR)] * 3
    result = prepared(tmp_path, rows)
    assert (len(result.train), [line["reason"] for line in dropped_lines(result)]) == (
        1,
        ["duplicate_item"] * 2,
    )
    assert (len(prepared(tmp_path, rows, clean=False).train)) == 3


def test_a_chat_template_without_conversations_is_refused(tmp_path: Path):
    with pytest.raises(AfzalError, match="chat_template has no effect: no row is a conversation"):
        prepared(tmp_path, [json.dumps(PAIR)], chat_template="{{ messages }}")
