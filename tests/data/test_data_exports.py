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


def task(*results, **more):
    """A task of the nested export with one annotation; a result is (tag, value)."""
    given = [{"from_name": tag, "to_name": "t", "type": "x", "value": value} for tag, value in results]
    annotation = {"id": 1, "completed_by": 1, "result": given}
    return {"id": 1, "data": {"prompt": "P", "answer1": A, "answer2": B}, "annotations": [annotation]} | more


LANGUAGE, WHY = ("language", {"choices": ["English"]}), ("why", {"text": ["shorter"]})


def test_all_tags_of_a_nested_export_are_read(tmp_path):
    """The first Choices tag says nothing about the order; three others do, and the third is not always answered."""
    rows = [
        task(LANGUAGE, ("safer", {"choices": ["answer1"]}), ("better", {"choices": ["tie"]}), WHY),
        task(LANGUAGE, ("better", {"choices": ["Answer 2"]}), ("clear", {"selected": "left"}), id=2),
        task(("better", {"choices": ["Answer 2"]}), id=3),
    ]
    dataset = read_rows(tmp_path, rows)
    assert dataset.format == "label_studio"
    assert [[(v.axis, v.outcome) for v in item.votes] for item in dataset.items] == [
        [("safer", "first"), ("better", "tie")],
        [("better", "second"), ("clear", "first")],
        [("better", "second")],
    ]
    assert "votes: annotations of safer and better and clear, each an axis (left: A better)" in dataset.notes
    counted = "tags that are not votes, with their answers in the first rows: language 2, why 1"
    assert counted in dataset.notes


def test_an_answer_of_a_tag_of_votes_must_name_a_side(tmp_path):
    rows = [task(LANGUAGE, ("better", {"choices": ["answer1"]}), id=k) for k in range(6)]
    assert {v.axis for item in read_rows(tmp_path, rows).items for v in item.votes} == {None}
    for wrong, said_of_it in (
        (("better", {"choices": ["banana"]}), "'better' is 'banana', not one of 1, 2, tie or both_bad"),
        (("better", {"choices": ["answer1", "answer2"]}), "'better' holds 2 choices"),
    ):
        with pytest.raises(AfzalError, match=said_of_it):
            read_rows(tmp_path, [*rows, task(LANGUAGE, wrong)])
    twice = ("better", {"choices": ["answer2"]})
    with pytest.raises(AfzalError, match="'better' holds several answers of one annotation"):
        read_rows(tmp_path, [*rows, task(twice, twice)])
    with pytest.raises(AfzalError, match="'language' is 'English', not one of"):
        read_rows(tmp_path, [task(LANGUAGE)])


def test_an_axis_of_the_source_is_named_in_every_row(tmp_path):
    rows = [
        LABEL_STUDIO | {"comparison": [{"selected": "left"}], "kinder": [{"selected": "right"}]},
        LABEL_STUDIO | {"comparison": [{"selected": "left"}], "kinder": "", "prompt": "Another?"},
    ]
    assert [v.axis for item in read_rows(tmp_path, rows).items for v in item.votes] == [
        "comparison",
        "kinder",
        "comparison",
    ]
    one = argilla(["1"], ["u1"], ["submitted"], "kinder") | argilla(["2"], ["u1"], ["submitted"], "clearer")
    records = [one, one | {"id": "r2", "clearer.responses.status": ["draft"]}]
    assert [v.axis for item in read_rows(tmp_path, records).items for v in item.votes] == [
        "kinder",
        "clearer",
        "kinder",
    ]


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
    assert "questions that are not votes, with their responses in the first rows: why 1, rating 1" in dataset.notes
    assert dataset.unread == []


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


def version_1(responses, question="preference", **more):
    """A record as Argilla 1 pushed it to the hub; a response is (user, value, status)."""
    given = [dict(zip(("user_id", "value", "status"), response, strict=True)) for response in responses]
    suggestion = {
        f"{question}-suggestion": "2",
        f"{question}-suggestion-metadata": {"type": None, "score": None, "agent": "m"},
    }
    texts = {"instruction": "Name a fruit.", "response-1": A, "response-2": B}
    return {**texts, question: given, **suggestion, "external_id": "x7", "metadata": '{"split": "a"}'} | more


def test_argillas_version_1_gives_a_vote_per_submitted_response(tmp_path):
    given = [("u1", "2", "submitted"), ("u2", "1", "draft"), (None, "1", "submitted"), ("u4", "1", "discarded")]
    unasked = version_1([("u1", "A fruit, please.", "submitted")], "corrected-instruction")
    dataset = read_rows(tmp_path, [version_1(given) | unasked, version_1([]) | unasked | {"external_id": None}])
    assert dataset.format == "argilla_flat"
    assert said(dataset) == [("u1", "second"), (None, "first")]
    assert dataset.items[0].id == "x7"
    assert dataset.drop_counts == {"draft (part)": 1, "discarded (part)": 1, "no_votes": 1}
    assert "votes: preference of each user who submitted" in dataset.notes
    assert (
        "questions that are not votes, with their responses in the first rows: corrected-instruction 2" in dataset.notes
    )
    assert dataset.unread == ["metadata"]


def test_argillas_version_1_in_columns_of_lists_and_in_parquet(tmp_path):
    """``datasets`` stores a sequence of objects as an object of lists: in old versions the responses, in all versions a
    ranking."""
    import pyarrow as pa
    from pyarrow import parquet

    ranking = {"rank": [1, 2], "value": ["response-2", "response-1"]}
    old = version_1([]) | {
        "preference": {"user_id": ["u1", "u2"], "value": ["2", "1"], "status": ["submitted", "draft"]}
    }
    for row, votes in ((version_1([("u1", ranking, "submitted")]), [((1,), (0,))]), (old, ["second"])):
        parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "records.parquet")
        for dataset in (read(tmp_path / "records.parquet"), read_rows(tmp_path, [row])):
            (item,) = dataset.items
            assert [getattr(v, "groups", None) or getattr(v, "outcome", None) for v in item.votes] == votes
    for wrong, why in (
        ({"user_id": ["u1"], "value": [], "status": []}, "lists differ in length"),
        ([{"user_id": "u1", "value": "2", "status": "submitted"}, "x"], "something other than responses"),
        (
            [{"user_id": "u1", "value": "banana", "status": "submitted"}],
            "'preference' holds 'banana', which does not order",
        ),
    ):
        sound = version_1([("u1", "2", "submitted")])
        with pytest.raises(AfzalError, match=why):
            read_rows(tmp_path, [sound, sound, sound | {"preference": wrong}])


def test_a_question_about_each_answer_scores_it(tmp_path):
    """Of ``rating_1`` and ``rating_2``; a text about one answer is not a score."""
    row = version_1([("u1", 4, "submitted"), ("u2", 2, "submitted")], "rating_1")
    row |= version_1([("u1", 1, "submitted"), ("u2", 5, "draft")], "rating_2") | version_1(
        [("u1", "Short.", "submitted")], "why_1"
    )
    dataset = read_rows(tmp_path, [row])
    votes = [(v.response, v.value, v.annotator, v.axis) for v in dataset.items[0].votes]
    assert votes == [(0, 4.0, "u1", None), (0, 2.0, "u2", None), (1, 1.0, "u1", None)]
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
