"""No row is lost silently: every row of a file is trained on, held out, or listed with a reason."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers_runs import dropped_lines, model_folder

from afzal import config, recipes, runs
from afzal.prepare import Prepared, prepare

LONG = "a" * 60
GOOD = [{"prompt": f"Q{i}?", "chosen": f" yes {i}", "rejected": f" no {i}"} for i in range(6)]
ODD: list[tuple[str, Any]] = [
    ("identical", {"prompt": "S?", "chosen": " same", "rejected": " same"}),
    ("identical but for white space", {"prompt": "S2?", "chosen": " same", "rejected": " same  "}),
    ("said one way", {"prompt": "C?", "chosen": " x", "rejected": " y"}),
    ("and the other", {"prompt": "C?", "chosen": " y", "rejected": " x"}),
    ("no chosen", {"prompt": "E?", "chosen": "", "rejected": " no"}),
    ("blank rejected", {"prompt": "E2?", "chosen": " no", "rejected": " \n"}),
    ("first copy", {"prompt": "D?", "chosen": " x", "rejected": " y"}),
    ("second copy", {"prompt": "D?", "chosen": " x", "rejected": " y"}),
    ("alike after the cut", {"prompt": "I?", "chosen": f" {LONG}b", "rejected": f" {LONG}c"}),
    ("long prompt", {"prompt": "L" * 80 + "?", "chosen": " short", "rejected": " brief"}),
    ("long answer", {"prompt": "R?", "chosen": " " + "r" * 70, "rejected": " q"}),
    ("weight 0", {"prompt": "Z?", "chosen": " a", "rejected": " b", "weight": 0}),
    ("tie", {"prompt": "T?", "chosen": " a", "rejected": " b", "p": 0.5}),
    ("no JSON", "garbage"),
    ("no text", {"prompt": "X?", "chosen": 5, "rejected": " b"}),
    ("one answer", {"prompt": "Y?", "chosen": " b"}),
]
LINE = {name: len(GOOD) + 1 + n for n, (name, _) in enumerate(ODD)}
AT_READING = {
    "no chosen": "empty_response",
    "blank rejected": "empty_response",
    "no JSON": "not_json",
    "no text": "wrong_type",
    "one answer": "missing_field",
    "identical": "identical_pair",
    "identical but for white space": "identical_pair",
    "second copy": "duplicate_item",
}
LOST = {
    "sft": AT_READING | {"weight 0": "no_good_response", "tie": "no_good_response"},
    "dpo": AT_READING | {"weight 0": "no_pair", "alike after the cut": "no_pair"},
    "ipo": AT_READING | {"weight 0": "no_pair", "alike after the cut": "no_pair"},
    "kto": AT_READING | {"weight 0": "no_label", "tie": "no_label"},
}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("accounts")
    model_folder(path / "model")
    write(path / "messy.jsonl", [*GOOD, *(row for _, row in ODD)])
    return path


def prepared(folder: Path, method: str, **overrides: Any) -> Prepared:
    given = {"model": str(folder / "model"), "data": str(folder / "messy.jsonl"), "eval_fraction": 0.0}
    return prepare(config.make(method, **(given | {"max_tokens": 40, "skip_bad": True} | overrides)))


def whole(losses: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines for rows or items that were dropped completely, not in part."""
    return [line for line in losses if line["unit"] in ("row", "item") and line["action"] == "dropped"]


def line_of(line: dict[str, Any]) -> int:
    return int(line["where"].rpartition(":")[2])


@pytest.mark.parametrize("method", LOST)
def test_each_defect_is_named_once_with_its_line_and_reason(folder: Path, method: str):
    result = prepared(folder, method)
    expected = {LINE[name]: reason for name, reason in LOST[method].items()}
    lines = whole(dropped_lines(result))
    assert {line_of(line): line["reason"] for line in lines} == expected
    assert len(lines) == len(expected), "a row was counted twice"
    assert result.facts["dropped"] == Counter(expected.values())
    assert result.facts["rows"] == len(GOOD) + len(ODD)


@pytest.mark.parametrize("method", LOST)
def test_kept_and_dropped_make_up_the_file(folder: Path, method: str):
    result = prepared(folder, method)
    kept = {int(t.item_id.rpartition(":")[2]) for t in result.train}
    gone = {line_of(line) for line in whole(dropped_lines(result))}
    assert not kept & gone
    assert kept | gone == set(range(1, result.facts["rows"] + 1))
    assert len(result.train) == result.facts["train"] == (2 * len(kept) if method == "kto" else len(kept))


@pytest.mark.parametrize("method", LOST)
def test_what_was_shortened_is_named_beside_it(folder: Path, method: str):
    result = prepared(folder, method)
    cuts = {(line_of(line), line["reason"]) for line in dropped_lines(result) if line["action"] == "cut"}
    assert cuts == {
        (LINE["alike after the cut"], "response_cut"),
        (LINE["long answer"], "response_cut"),
        (LINE["long prompt"], "prompt_cut"),
    }
    assert result.facts["cut"] == {"response_cut": 3, "prompt_cut": 1}
    assert result.facts["parts"] == {"identical_after_cut": 1}


def test_contradictions_are_trained_on_and_counted_by_the_audit(folder: Path):
    result = prepared(folder, "dpo")
    (finding,) = [f for f in result.audit["audit"]["findings"] if f["code"] == "contradictions"]
    assert finding["count"] == 1
    kept = {t.item_id for t in result.train}
    assert {f"messy.jsonl:{LINE[name]}" for name in ("said one way", "and the other")} <= kept


@pytest.mark.parametrize("method", ["sft", "dpo", "kto"])
def test_the_run_folder_says_the_same(folder: Path, tmp_path: Path, method: str):
    given = {"model": str(folder / "model"), "data": str(folder / "messy.jsonl"), "out": str(tmp_path / "run")}
    given |= {"max_tokens": 40, "skip_bad": True, "max_steps": 1, "batch_size": 4, "sample_prompts": 1}
    run = runs.open_run(recipes.train(config.make(method, **given, sample_tokens=2, eval_fraction=0.3)))
    lines = [json.loads(line) for line in (run.path / "dropped.jsonl").read_text().splitlines()]
    facts = run.facts()["data"]
    assert Counter(line["reason"] for line in whole(lines)) == facts["dropped"] == Counter(LOST[method].values())
    per_row = 2 if method == "kto" else 1
    assert facts["train"] + facts["eval"] + per_row * len(whole(lines)) == per_row * facts["rows"]
    assert facts["eval"] > 0
    assert (run.path / "data.json").exists()


ARENA = ["model_a", "tie (bothbad)", "tie", "model_b"]


def arena(path: Path) -> Path:
    def said(answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"hi {answer[1]}"}, {"role": "assistant", "content": answer}]

    rows = [
        {"conversation_a": said(f"a{i}"), "conversation_b": said(f"b{i}"), "winner": w} for i, w in enumerate(ARENA)
    ]
    return write(path, rows)


def test_sft_learns_no_answer_that_people_called_bad(folder: Path, tmp_path: Path):
    """``both bad`` gives no order, but is no reason to imitate both."""
    result = prepared(folder, "sft", data=str(arena(tmp_path / "arena.jsonl")), max_tokens=200)
    said = [result.tokenizer.decode(t.branches[0].ids, skip_special_tokens=True).strip() for t in result.train]
    assert said == ["a0", "b3"]
    assert [(line_of(x), x["reason"]) for x in dropped_lines(result)] == [
        (2, "no_good_response"),
        (3, "no_good_response"),
    ]


def test_sft_learns_everything_where_nobody_was_asked(folder: Path, tmp_path: Path):
    path = write(tmp_path / "plain.jsonl", [{"prompt": f"Q{i}", "completion": f" a{i}"} for i in range(3)])
    result = prepared(folder, "sft", data=str(path))
    assert (len(result.train), dropped_lines(result)) == (3, [])


def test_an_axis_leaves_out_what_was_judged_on_another(folder: Path, tmp_path: Path):
    """For SFT above all: without this line both answers of such a row would be examples."""
    rows = [
        {"prompt": f"Q{i}", "response_0": f"a{i}", "response_1": f"b{i}", "better_response_id": 0} for i in range(3)
    ]
    rows[0]["safer_response_id"] = 1
    path = write(tmp_path / "axes.jsonl", rows)
    for method in ("sft", "dpo"):
        result = prepared(folder, method, data=str(path), axis="safer", max_tokens=200)
        assert [line_of(x) for x in dropped_lines(result) if x["reason"] == "not_on_axis"] == [2, 3]
        assert len(result.train) == 1
    result = prepared(folder, "sft", data=str(path), axis="safer", max_tokens=200)
    assert "b0" in result.tokenizer.decode(result.train[0].branches[0].ids)


def test_rows_that_share_an_id_keep_their_own_line_numbers(folder: Path, tmp_path: Path):
    """``prompt_id`` names the prompt, so several rows of a file have the same one."""
    base = {"prompt_id": "same", "prompt": "Q?"}
    rows = [base | {"chosen": f" {i}", "rejected": " no", "weight": int(i != 1)} for i in range(3)]
    result = prepared(folder, "dpo", data=str(write(tmp_path / "ids.jsonl", rows)))
    assert [(line_of(x), x["reason"]) for x in dropped_lines(result)] == [(2, "no_pair")]


@pytest.mark.parametrize(
    ("method", "extra", "said"),
    [
        ("dpo", {"margin": 2.0}, "margins"),
        ("kto", {"margin": 2.0}, "margins"),
        ("sft", {"weight": 2.0}, "weights"),
        ("kto", {"weight": 2.0}, "weights"),
        ("kto", {"p": 0.7}, "probabilities"),
        ("dpo", {"weight": 2.0, "p": 0.7}, None),
        ("kto", {}, None),
    ],
)
def test_columns_that_a_method_cannot_use_are_said_aloud(
    folder: Path, tmp_path: Path, method: str, extra: dict[str, float], said: str | None
):
    rows = [GOOD[0] | extra, *GOOD[1:]]
    result = prepared(folder, method, data=str(write(tmp_path / "rows.jsonl", rows)))
    notes = [note for note in result.notes if "no effect" in note]
    assert len(notes) == (said is not None)
    assert said is None or said in notes[0]


@pytest.mark.slow
def test_every_row_of_the_hh_sample_is_accounted_for_whole(folder: Path, shared: Path):
    """1,492 real rows and the tokenizer of a real model, two examples per row for KTO."""
    source = shared / "data/pref/hh_rlhf_harmless_a.jsonl.gz"
    made = partial(config.make, model=str(shared / "data/models/stories260k"), data=str(source), eval_fraction=0.1)
    result = prepare(made("kto"))
    gone = {line_of(line) for line in whole(dropped_lines(result))}
    assert {line_of(x) for x in dropped_lines(result) if x["reason"] == "prefix_differs"} <= gone
    examples = Counter(t.item_id for t in (*result.train, *result.evaluation))
    assert set(examples.values()) == {2}
    assert len(examples) + len(gone) == result.facts["rows"] == 1492
    assert not {t.item_id for t in result.train} & {t.item_id for t in result.evaluation}


@pytest.mark.parametrize(("label", "said"), [(True, "labelled good"), (False, "labelled bad")])
def test_labels_of_one_kind_alone_are_said_aloud(folder: Path, tmp_path: Path, label: bool, said: str):
    rows = [{"prompt": f"p {k}", "completion": f"answer {k}", "label": label} for k in range(8)]
    result = prepared(folder, "kto", data=str(write(tmp_path / "rows.jsonl", rows)))
    assert [note for note in result.notes if said in note and "needs both kinds" in note]
    rows[0]["label"] = rows[7]["label"] = not label
    result = prepared(folder, "kto", data=str(write(tmp_path / "both.jsonl", rows)), eval_fraction=0.0)
    assert not [note for note in result.notes if "needs both kinds" in note]


@pytest.mark.parametrize("method", ["dpo", "rloo"])
def test_what_a_template_does_is_said_once_for_both_parts(folder: Path, tmp_path: Path, method: str):
    deaf = "{% for m in messages if m.role != 'system' %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    deaf += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which colour?"}]
    rows = [
        {
            "prompt": [talk[0], talk[1] | {"content": f"Which colour has {k}?"}],
            "chosen": [{"role": "assistant", "content": "Blue."}],
            "rejected": [{"role": "assistant", "content": "Red."}],
        }
        for k in range(10)
    ]
    more = {"reward": "len", "sample_tokens": 4} if method == "rloo" else {}
    source = str(write(tmp_path / "rows.jsonl", rows))
    result = prepared(folder, method, data=source, chat_template=deaf, eval_fraction=0.2, max_tokens=200, **more)
    notes = [note for note in result.notes if "system message" in note]
    assert notes == ["the template leaves out the system message of 10 items"]
