"""Flat exports of annotation tools, as Label Studio and Argilla write them."""

import csv
import json

import pytest

from afzal.data import read
from afzal.errors import AfzalError

A, B = "An apple.", "A chair."


def read_rows(path, rows):
    (path / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read(path / "votes.jsonl")


def said(dataset):
    return [(v.annotator, v.outcome) for item in dataset.items for v in item.votes]


LABEL_STUDIO = {
    "annotation_id": 31,
    "annotator": "1",
    "answer1": A,
    "answer2": B,
    "comparison": '[{"selected": "left"}]',
    "created_at": "2026-03-09T22:16:08.728353Z",
    "id": 3,
    "lead_time": 4.5,
    "prompt": "Name a fruit.",
    "updated_at": "2026-03-09T22:16:08.728378Z",
}


def as_table(path, rows, delimiter=","):
    """The rows as Label Studio writes tables: columns in alphabetical order, every text in quotes."""
    with path.open("w", newline="", encoding="utf8") as file:
        table = csv.DictWriter(file, sorted(rows[0]), quoting=csv.QUOTE_NONNUMERIC, delimiter=delimiter)
        table.writeheader()
        table.writerows(rows)
    return read(path)


@pytest.mark.parametrize(("name", "delimiter"), [("result.csv", ","), ("result.tsv", "\t")])
def test_label_studios_tables_need_no_columns(tmp_path, name, delimiter):
    rows = [
        LABEL_STUDIO,
        LABEL_STUDIO | {"annotation_id": 32, "annotator": "b@example.org", "comparison": '[{"selected": "right"}]'},
        LABEL_STUDIO | {"annotation_id": 33, "annotator": "3", "comparison": "", "lead_time": ""},
    ]
    dataset = as_table(tmp_path / name, rows, delimiter)
    assert dataset.format == "label_studio_flat"
    assert dataset.notes[:4] == [
        "prompt: prompt",
        "A: answer1",
        "B: answer2",
        "votes: comparison (left: A better; a Ranker's order, best first) of annotator",
    ]
    assert said(dataset) == [("1", "first"), ("b@example.org", "second")]
    (item,) = dataset.items
    assert [(v.seconds, v.id, v.at) for v in item.votes] == [
        (4.5, "31", LABEL_STUDIO["created_at"]),
        (4.5, "32", LABEL_STUDIO["created_at"]),
    ]
    assert item.id == "3"
    assert (dataset.rows, dataset.kept, dataset.drop_counts) == (3, 2, {"no_votes": 1})


def test_label_studios_tables_agree_with_its_json(tmp_path):
    table = read_rows(tmp_path, [LABEL_STUDIO | {"comparison": [{"selected": side}]} for side in ("left", "right")])
    results = [[{"from_name": "comparison", "type": "pairwise", "value": {"selected": s}}] for s in ("left", "right")]
    whole = {"id": 3, "data": {"prompt": "Name a fruit.", "answer1": A, "answer2": B}}
    about = {"id": 31, "completed_by": 1, "lead_time": 4.5, "created_at": LABEL_STUDIO["created_at"]}
    nested = read_rows(tmp_path, [whole | {"annotations": [about | {"result": result} for result in results]}])
    assert nested.format == "label_studio"
    assert table.items[0].votes == nested.items[0].votes


def test_label_studios_tags_are_axes(tmp_path):
    row = LABEL_STUDIO | {"comparison": [{"selected": "left"}], "kinder": [{"selected": "right"}], "why": "shorter"}
    (item,) = read_rows(tmp_path, [row]).items
    assert [(v.axis, v.outcome) for v in item.votes] == [("comparison", "first"), ("kinder", "second")]
    with pytest.raises(AfzalError, match="'comparison' holds 2 answers of one annotation"):
        read_rows(tmp_path, [row | {"comparison": [{"selected": "left"}, {"selected": "right"}]}])


def test_two_columns_of_left_and_right_are_not_guessed_at(tmp_path):
    row = LABEL_STUDIO | {"comparison": "right", "position": "left"}
    with pytest.raises(AfzalError, match="'position' and 'comparison' both hold left or right; --columns winner=FIELD"):
        read_rows(tmp_path, [row])
    named = read(tmp_path / "votes.jsonl", columns={"winner": "comparison"})
    assert said(named) == [("1", "second")]
    assert said(read_rows(tmp_path, [LABEL_STUDIO | {"comparison": "right"}])) == [("1", "second")]


def test_cancelled_annotations_are_counted(tmp_path):
    task = {"id": 1, "data": {"prompt": "P", "answer1": A, "answer2": B}}
    done = {"id": 1, "completed_by": 1, "result": [{"type": "pairwise", "value": {"selected": "left"}}]}
    cancelled = {"id": 2, "completed_by": 2, "was_cancelled": True, "result": done["result"]}
    rows = [task | {"annotations": [done, cancelled]}, task | {"id": 2, "annotations": [cancelled]}]
    dataset = read_rows(tmp_path, rows)
    assert said(dataset) == [("1", "first")]
    assert dataset.items[0].id == "1"
    assert dataset.drop_counts == {"cancelled (part)": 1, "cancelled": 1}
    assert (dataset.rows, dataset.kept) == (2, 1)


def argilla(values, users, states, question="preference", **more):
    """A record as ``to_list(flatten=True)`` gives it."""
    name = f"{question}.responses"
    record = {"id": "r1", "_server_id": "s1", "prompt": "Name a fruit.", "response_1": A, "response_2": B}
    return record | {name: values, f"{name}.users": users, f"{name}.status": states} | more


def test_argillas_flat_records_give_a_vote_per_submitted_response(tmp_path):
    suggestion = {"preference.suggestion": "response_1", "preference.suggestion.agent": "model"}
    values, users = ["response_2", "tie", "1", "response_2", "2"], ["u1", "u2", "u3", "u4", "u5"]
    states = ["submitted", "submitted", "draft", "discarded", None]
    dataset = read_rows(tmp_path, [argilla(values, users, states, **suggestion)])
    assert dataset.format == "argilla_flat"
    assert said(dataset) == [("u1", "second"), ("u2", "tie")]
    assert dataset.drop_counts == {"draft (part)": 1, "discarded (part)": 1, "no_status (part)": 1}
    assert dataset.items[0].id == "r1"
    assert "votes: preference.responses of each user who submitted" in dataset.notes


def test_a_record_without_a_submitted_response_is_dropped_by_its_status(tmp_path):
    rows = [
        argilla(["1"], ["u1"], ["submitted"]),
        argilla(["1"], ["u1"], ["draft"], id="r2"),
        argilla(None, None, None, id="r3", **{"preference.suggestion": "response_1"}),
    ]
    dataset = read_rows(tmp_path, rows)
    assert said(dataset) == [("u1", "first")]
    assert dataset.drop_counts == {"draft": 1, "no_votes": 1}


def test_argillas_questions_are_axes_and_other_questions_are_not_votes(tmp_path):
    row = argilla(["1"], ["u1"], ["submitted"], "kinder") | argilla(["2"], ["u1"], ["submitted"], "clearer")
    row |= argilla(["It is green."], ["u1"], ["draft"], "why") | argilla([4], ["u1"], ["submitted"], "rating")
    dataset = read_rows(tmp_path, [row])
    assert [(v.axis, v.outcome) for v in dataset.items[0].votes] == [("kinder", "first"), ("clearer", "second")]
    assert dataset.drop_counts == {}
    assert "why.responses" in dataset.unread


def test_an_answer_that_orders_nothing_is_damage(tmp_path):
    rows = [argilla(["1"], ["u1"], ["submitted"]), argilla(["banana"], ["u2"], ["submitted"])]
    with pytest.raises(AfzalError, match=r"'preference\.responses' holds 'banana', which does not order") as error:
        read_rows(tmp_path, rows)
    assert error.value.where.endswith(":2")
    with pytest.raises(AfzalError, match=r"responses\.users' has 1 entries for 2 responses"):
        read_rows(tmp_path, [argilla(["1", "2"], ["u1"], ["submitted"] * 2)])


def test_argillas_records_in_parquet_and_in_tables(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    row = argilla([["response_2", "response_1"], ["response_1", "response_2"]], ["u1", "u2"], ["submitted", "draft"])
    parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "records.parquet")
    cells = {name: repr(value) if isinstance(value, list) else value for name, value in row.items()}
    for dataset in (read(tmp_path / "records.parquet"), as_table(tmp_path / "records.csv", [cells])):
        assert dataset.format == "argilla_flat"
        assert [(v.annotator, v.groups) for v in dataset.items[0].votes] == [("u1", ((1,), (0,)))]
        assert dataset.drop_counts == {"draft (part)": 1}


def test_argillas_nested_records_count_drafts_too(tmp_path):
    fields = {"prompt": "P", "response_1": A, "response_2": B}
    answer = {"values": {"best": {"value": "response_1"}}}
    responses = [
        {"user_id": "u1", "status": "submitted", **answer},
        {"user_id": "u2", "status": "draft", **answer},
        {"user_id": "u3", "status": "discarded", "values": None},
    ]
    dataset = read_rows(tmp_path, [{"id": "1", "fields": fields, "responses": responses}])
    assert said(dataset) == [("u1", "first")]
    assert dataset.drop_counts == {"draft (part)": 1, "discarded (part)": 1}
