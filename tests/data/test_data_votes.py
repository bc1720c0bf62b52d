"""Votes as people store them: sides, names, numbers and signs, one vote per row or one column per annotator."""

import csv
import json

import pytest

from afzal import api
from afzal.data import read
from afzal.errors import AfzalError
from afzal.quality import clean
from afzal.records import preferences

A, B = "An apple.", "A chair."
BASE = {"prompt": "Name a fruit.", "response_a": A, "response_b": B}
NUMBERED = {"prompt": "Name a fruit.", "answer_1": A, "answer_2": B}


def read_rows(path, rows):
    (path / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read(path / "votes.jsonl")


def said(dataset):
    return [(v.annotator, v.outcome) for item in dataset.items for v in item.votes]


def test_a_word_that_names_no_side_is_reported_with_its_place_and_column(tmp_path):
    with pytest.raises(AfzalError, match="'winner' is 'left', not one of a, b, tie or both_bad") as error:
        read_rows(tmp_path, [BASE | {"winner": word} for word in ("left", "right")])
    assert error.value.where.endswith("votes.jsonl:1")
    assert "format" not in str(error.value)
    with pytest.raises(AfzalError, match="no known format"):  # if the vote is not the only odd value
        read_rows(tmp_path, [BASE | {"winner": "left"}, {"prompt": "p", "response_a": "x"}])


@pytest.mark.parametrize(
    ("word", "outcome"),
    [
        *((word, "first") for word in ("A", "a", "response_a", "Response A", "[[A]]", "Option A", "model_a")),
        *((word, "first") for word in ("m1", A, "A>B", "B<A", "A is better", "a wins")),
        *((word, "second") for word in ("B", "Response B", "text_b", "model_b", "m2", B, "B > A", "[[A<<B]]")),
        *((word, "tie") for word in ("tie", "Tie", "equal", "draw", "A=B", "no preference")),
        *((word, "both_bad") for word in ("both_bad", "Both bad", "neither")),
    ],
)
def test_words_for_the_two_sides(tmp_path, word, outcome):
    row = BASE | {"model_a": "m1", "model_b": "m2", "winner": word, "annotator": "ann"}
    dataset = read_rows(tmp_path, [row])
    assert said(dataset) == [("ann", outcome)]
    assert [response.source for response in dataset.items[0].responses] == ["m1", "m2"]


@pytest.mark.parametrize("word", ["banana", "A and B", "C", "-1", "3", "0.5", "m3", "A>C", "left"])
def test_words_that_name_no_side_are_never_skipped(tmp_path, word):
    with pytest.raises(AfzalError):
        read_rows(tmp_path, [BASE | {"winner": word, "annotator": "ann"}])


def test_numbers_name_sides_that_are_numbers(tmp_path):
    rows = [NUMBERED | {"choice": got, "rater": str(k)} for k, got in enumerate((1, 2, "1", 2.0, 0))]
    assert [outcome for _, outcome in said(read_rows(tmp_path, rows))] == ["first", "second", "first", "second", "tie"]
    zero = [{"prompt": "P", "answer_0": A, "answer_1": B, "choice": k, "rater": "x"} for k in (0, 1)]
    assert [outcome for _, outcome in said(read_rows(tmp_path, zero))] == ["first", "second"]


def test_one_two_and_zero_number_the_sides_only_if_a_two_occurs(tmp_path):
    rows = [BASE | {"winner": got, "annotator": str(k)} for k, got in enumerate((1, 0, 2))]
    assert [outcome for _, outcome in said(read_rows(tmp_path, rows))] == ["first", "tie", "second"]
    with pytest.raises(AfzalError, match="1 may be the first answer or the second"):
        read_rows(tmp_path, rows[:2])


def test_what_is_recorded_of_a_vote_is_kept(tmp_path):
    about = {"rater_id": 7, "lead_time": 3.5, "timestamp": "2026-01-02T03:04:05Z", "vote_id": "v1", "weight": 2}
    (vote,) = read_rows(tmp_path, [BASE | {"winner": "B"} | about]).items[0].votes
    assert (vote.annotator, vote.seconds, vote.at, vote.id, vote.weight) == (
        "7",
        3.5,
        "2026-01-02T03:04:05Z",
        "v1",
        2.0,
    )
    (vote,) = read_rows(tmp_path, [BASE | {"winner": "B", "judge": "j", "tstamp": 1700000000.5}]).items[0].votes
    assert vote.at == "2023-11-14T22:13:20.500000+00:00"


WIDE = {
    "names": [{"ann": "A", "ben": "B", "eve": "tie"}, {"ann": "B", "ben": "", "eve": "both_bad"}],
    "columns": [
        {"winner_ann": "a", "winner_ben": "b", "winner_eve": "tie"},
        {"winner_ann": "b", "winner_ben": None, "winner_eve": "both_bad"},
    ],
    "suffixes": [
        {"ann_vote": "A", "ben_vote": "B", "eve_vote": "tie"},
        {"ann_vote": "B", "ben_vote": None, "eve_vote": "both_bad"},
    ],
    "object": [
        {"votes": {"ann": "A", "ben": "B", "eve": "tie"}},
        {"votes": {"ann": "B", "ben": None, "eve": "both_bad"}},
    ],
    "objects": [
        {"annotations": [{"rater": n, "winner": w} for n, w in (("ann", "A"), ("ben", "B"), ("eve", "tie"))]},
        {"annotations": [{"rater": n, "winner": w} for n, w in (("ann", "B"), ("eve", "both_bad"))]},
    ],
}


@pytest.mark.parametrize("layout", WIDE)
def test_several_annotators_in_one_row(tmp_path, layout):
    rows = [BASE | cells | {"prompt": f"P{k}", "note": "x"} for k, cells in enumerate(WIDE[layout])]
    dataset = read_rows(tmp_path, rows)
    assert dataset.format == "votes_wide"
    want = [("ann", "first"), ("ben", "second"), ("eve", "tie"), ("ann", "second"), ("eve", "both_bad")]
    assert said(dataset) == want


def test_numbered_annotators_and_lists_without_names(tmp_path):
    rows = [NUMBERED | {"annotator_1": 1, "annotator_2": 2, "annotator_3": 0}]
    assert said(read_rows(tmp_path, rows)) == [
        ("annotator_1", "first"),
        ("annotator_2", "second"),
        ("annotator_3", "tie"),
    ]
    assert said(read_rows(tmp_path, [BASE | {"votes": ["A", "B"]}])) == [("votes 1", "first"), ("votes 2", "second")]


def test_a_column_of_an_annotator_with_a_damaged_cell_is_not_dropped(tmp_path):
    rows = [BASE | {"prompt": f"P{k}", "annotator_1": "A", "annotator_2": "B"} for k in range(9)]
    rows[4]["annotator_2"] = "banana"
    with pytest.raises(AfzalError, match="banana"):
        read_rows(tmp_path, rows)


def test_columns_of_other_things_are_no_annotators(tmp_path):
    rows = [BASE | {"prompt": f"P{k}", "ann": "A", "ben": "B", "judge_model": "A", "language": "uz"} for k in range(3)]
    assert {name for name, _ in said(read_rows(tmp_path, rows))} == {"ann", "ben"}
    # scores from 1 to 5 are not votes, although 1 and 2 alone would be
    rows = [NUMBERED | {"prompt": f"P{k}", "rater_1": 1 + k, "rater_2": 5 - k} for k in range(5)]
    with pytest.raises(AfzalError):
        read_rows(tmp_path, rows)


def test_a_score_next_to_votes_is_no_annotator(tmp_path):
    rows = [BASE | {"prompt": f"P{k}", "ann": "A", "ben": "B", "user_rating": k} for k in (1, 2, 3, 4, 5)]
    assert {name for name, _ in said(read_rows(tmp_path, rows))} == {"ann", "ben"}


def test_a_name_of_both_answers_names_neither(tmp_path):
    row = BASE | {"model_a": "m1", "model_b": "m1", "annotator": "ann"}
    assert said(read_rows(tmp_path, [row | {"winner": "model_b"}])) == [("ann", "second")]
    with pytest.raises(AfzalError):
        read_rows(tmp_path, [row | {"winner": "model_b"}, row | {"winner": "m1"}])


def test_an_empty_row_is_dropped_and_counted(tmp_path):
    rows = [BASE | {"ann": "A", "ben": "B"}, BASE | {"prompt": "P", "ann": "", "ben": ""}]
    dataset = read_rows(tmp_path, rows)
    assert dataset.drop_counts == {"no_votes": 1}


def test_a_table_of_votes(tmp_path):
    with (tmp_path / "votes.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["prompt", "response_a", "response_b", "nodira", "timur"])
        table.writerows([["P", A, B, "A", "B"], ["Q", A, B, "tie", ""]])
    dataset = read(tmp_path / "votes.csv")
    assert said(dataset) == [("nodira", "first"), ("timur", "second"), ("nodira", "tie")]


def test_agreeing_annotators_are_no_duplicates_and_disagreement_is_pooled(tmp_path):
    rows = [BASE | {"winner": w, "annotator": n} for n, w in (("a", "A"), ("b", "A"), ("c", "B"))]
    items, dropped = clean(read_rows(tmp_path, rows).items)
    assert not dropped
    assert [q.p for q in preferences(items[0])] == [pytest.approx(2 / 3)]


def test_rows_in_both_orders_are_one_item_and_keep_the_order_shown(tmp_path):
    turned = {"prompt": BASE["prompt"], "response_a": B, "response_b": A}
    rows = [BASE | {"winner": "A", "annotator": "x"}, turned | {"winner": "B", "annotator": "y"}]
    (item,) = read_rows(tmp_path, rows).items
    assert [(v.first, v.outcome, v.shown_first) for v in item.votes] == [(0, "first", 0), (0, "first", 1)]


def test_potatos_folder_is_joined_with_its_data(tmp_path):
    (tmp_path / "tasks.json").write_text(json.dumps([{"id": "1", "prompt": "Q", "responses": [A, B]}]))
    for user, side in (("ann", "A"), ("ben", "tie")):
        (tmp_path / user).mkdir()
        line = {"id": "1", "displayed_text": "...", "label_annotations": {"preference": {"selection": side}}}
        (tmp_path / user / "annotated_instances.jsonl").write_text(json.dumps(line) + "\n")
        (tmp_path / user / "user_state.json").write_text("{}")
    (item,) = read(tmp_path).items
    assert [(v.annotator, v.outcome) for v in item.votes] == [("ann", "first"), ("ben", "tie")]
    assert item.id == "1"


def test_potatos_export_is_joined_with_its_data_and_refused_without(tmp_path):
    lines = [{"instance_id": "1", "user_id": u, "labels": {"p": {"rank_order": "B,A"}}} for u in ("ann", "ben")]
    (tmp_path / "annotations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(AfzalError, match="data file next to"):
        read(tmp_path / "annotations.jsonl")
    (tmp_path / "data.jsonl").write_text(json.dumps({"id": 1, "prompt": "Q", "responses": [A, B]}) + "\n")
    (item,) = read(tmp_path).items
    assert [(v.annotator, v.groups) for v in item.votes] == [("ann", ((1,), (0,))), ("ben", ((1,), (0,)))]


def test_label_studio_says_ties_by_choices_and_truths_by_ground_truth(tmp_path):
    def annotation(number, value, **more):
        return {"id": number, "completed_by": number, "result": [{"type": "x", "value": value}]} | more

    row = {"id": 1, "data": {"prompt": "P", "response_a": A, "response_b": B}}
    row["annotations"] = [
        annotation(1, {"choices": ["Response B"]}),
        annotation(2, {"choices": ["tie"]}),
        annotation(3, {"selected": "left"}, ground_truth=True),
        annotation(4, {"selected": "left"}, was_cancelled=True),
        annotation(5, {}),
    ]
    (item,) = read_rows(tmp_path, [row]).items
    assert [(v.annotator, v.outcome) for v in item.votes] == [("1", "second"), ("2", "tie")]
    assert [v.outcome for v in item.gold] == ["first"]


def test_argilla_says_best_of_several(tmp_path):
    fields = {"prompt": "P", "response_1": A, "response_2": B, "response_3": "C"}
    row = {"id": "1", "fields": fields, "responses": {"best": [{"value": "response_2", "user_id": "u"}]}}
    (item,) = read_rows(tmp_path, [row]).items
    assert {(q.i, q.j, q.p) for q in preferences(item)} == {(1, 0, 1.0), (1, 2, 1.0)}


def test_no_annotator_is_left_out_for_the_end_of_their_name(tmp_path):
    """David, Ingrid and Cname end like id and name columns."""
    file = tmp_path / "wide.csv"
    file.write_text(
        "prompt,response_a,response_b,David,Ingrid,cname,user_id,row_name\n"
        + "".join(f"Q{k}?,yes {k},no {k},A,B,tie,{k},n{k}\n" for k in range(9))
    )
    dataset = read(file)
    assert [vote.annotator for vote in dataset.items[0].votes] == ["David", "Ingrid", "cname"]


def test_blanks_around_a_name_are_not_another_person(tmp_path):
    """Names that differ in capitalisation stay separate, and aggregate asks about them."""
    lines = [
        f"Q{k},A,B,{won},{who}" for k in range(3) for won, who in (("model_a", "ann "), ("tie", " ann"), ("tie", "Ann"))
    ]
    source = tmp_path / "votes.csv"
    source.write_text("\n".join(["prompt,response_a,response_b,winner,annotator", *lines]))
    names = {vote.annotator for item in read(source).items for vote in item.votes}
    assert names == {"ann", "Ann"}
    (asked,) = [one for one in api.aggregate(source, resamples=5)["findings"] if "differ" in one]
    assert asked.startswith("ann and Ann are counted as 2 annotators")


def test_files_in_another_encoding_or_by_another_name_say_what_to_do(tmp_path):
    row = '{"prompt": "ü", "chosen": "gut", "rejected": "schlecht"}\n'
    (tmp_path / "latin.jsonl").write_bytes(row.encode("latin-1"))
    (tmp_path / "plain.jsonl.gz").write_text(row)
    for name, remedy in (("latin.jsonl", "iconv -f LATIN1 -t UTF-8"), ("plain.jsonl.gz", "take .gz out of its name")):
        with pytest.raises(AfzalError) as error:
            read(tmp_path / name)
        assert remedy in error.value.remedy


def test_left_and_right_are_sides_if_the_answers_are_named_so(tmp_path):
    rows = [{"prompt": "Name a fruit.", "answer1": A, "answer2": B, "comparison": side} for side in ("left", "right")]
    path = tmp_path / "label_studio.csv"
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    columns = {"response_left": "answer1", "response_right": "answer2", "winner": "comparison"}
    assert [outcome for _, outcome in said(read(path, columns=columns))] == ["first", "second"]


def test_the_same_vote_in_two_fields_is_one_vote(tmp_path):
    rows = [
        BASE | {"preference": "A", "label": "response_a", "annotator": "ann"},
        BASE | {"preference": "B>>A", "label": "B", "annotator": "ben"},
        BASE | {"preference": "tie", "label": "", "annotator": "cid"},
    ]
    dataset = read_rows(tmp_path, rows)
    assert (dataset.format, dataset.unread) == ("votes", [])
    assert said(dataset) == [("ann", "first"), ("ben", "second"), ("cid", "tie")]
    assert [v.strength for v in dataset.items[0].votes] == [None, 2.0, None]
    assert "vote: preference = label (a, b, tie or both_bad); rows on the same answers are one item" in dataset.notes


def test_two_different_votes_in_one_row_are_damage(tmp_path):
    rows = [BASE | {"preference": side, "label": side, "annotator": side} for side in "ABAAA"]
    rows.append(BASE | {"preference": "A", "label": "B", "annotator": "eve"})
    with pytest.raises(AfzalError, match="'label' is 'B', but 'preference' is 'A': one row states one vote") as error:
        read_rows(tmp_path, rows)
    assert error.value.where.endswith("votes.jsonl:6")
    kept = read(tmp_path / "votes.jsonl", on_error="drop")
    assert kept.drop_counts == {"bad_value": 1}
    assert len(said(kept)) == 5


def test_each_field_of_a_vote_has_its_own_numbers(tmp_path):
    """In one field 1, 2 and 0 are counts; in the other the sides are words."""
    rows = [BASE | {"choice": n, "label": w} for n, w in ((1, "A"), (2, "B"), (0, "tie"))]
    assert [outcome for _, outcome in said(read_rows(tmp_path, rows))] == ["first", "second", "tie"]
    with pytest.raises(AfzalError, match="'label' is 'A', but 'choice' is '2'"):
        read_rows(tmp_path, [*rows, BASE | {"choice": 2, "label": "A"}])


def test_next_to_winner_another_vote_must_agree(tmp_path):
    rows = [BASE | {"winner": side, "label": side, "annotator": side} for side in "AB"]
    assert said(read_rows(tmp_path, rows)) == [("A", "first"), ("B", "second")]
    with pytest.raises(AfzalError, match="'winner' is 'banana', not one of a, b, tie or both_bad"):
        read_rows(tmp_path, [*rows, BASE | {"winner": "banana", "label": "A"}])
    against = [row | {"label": "A"} for row in rows]
    with pytest.raises(AfzalError, match="'label' may change what the rows mean"):
        read_rows(tmp_path, against)
    assert said(read(tmp_path / "votes.jsonl", format="votes")) == [("A", "first"), ("B", "second")]
    chosen = [{("preference" if k == "winner" else k): v for k, v in row.items()} for row in against]
    with pytest.raises(AfzalError, match="one row states one vote"):
        read_rows(tmp_path, chosen)
    by_name = read(tmp_path / "votes.jsonl", columns={"winner": "preference"}, format="votes")
    assert said(by_name) == [("A", "first"), ("B", "second")]


def test_a_label_next_to_annotators_is_nobodys_vote(tmp_path):
    rows = [BASE | {"annotator1": a, "annotator2": b, "label": b} for a, b in ("AB", "BB")]
    with pytest.raises(
        AfzalError, match="fields annotator1 and annotator2 look like votes of several annotators, next"
    ):
        read_rows(tmp_path, rows)
    two = [("annotator1", "first"), ("annotator2", "second"), ("annotator1", "second"), ("annotator2", "second")]
    assert said(read(tmp_path / "votes.jsonl", format="votes_wide")) == two


NAMED = [BASE | {"prompt": f"P{k}", "ann": a, "ben": "B", "carl": "tie", "label": "A"} for k, a in enumerate("AB")]


@pytest.mark.parametrize(
    ("rows", "fields"),
    [
        (NAMED, "the fields ann, ben and carl look"),
        ([BASE | {"votes": {"ann": "A", "ben": "B"}, "label": "A"}], "the field votes looks"),
        ([{**row, "winner": row["label"]} for row in NAMED], "the fields ann, ben and carl look"),
    ],
)
def test_names_of_annotators_next_to_a_label_need_a_decision(tmp_path, rows, fields):
    with pytest.raises(
        AfzalError, match=f"{fields} like votes of several annotators, next to another vote in"
    ) as error:
        read_rows(tmp_path, rows)
    assert "--format votes_wide reads the votes in" in error.value.remedy
    people = read(tmp_path / "votes.jsonl", format="votes_wide")
    assert {name for name, _ in said(people)} >= {"ann", "ben"}
    alone = read(tmp_path / "votes.jsonl", format="votes")
    assert said(alone) == [(None, "first")] * len(rows)
    assert any(note.startswith("vote: ") and "label" in note for note in alone.notes)
    if "label" in rows[0] and "winner" not in rows[0] and "ann" in rows[0]:
        assert said(read(tmp_path / "votes.jsonl", columns={"winner": "label"})) == said(alone)


def test_one_column_of_side_words_or_numbers_next_to_a_label_are_no_annotators(tmp_path):
    for columns in ({"style": "A"}, {"ann": 1, "ben": 2}, {"model": "a", "comment": "b"}):
        dataset = read_rows(tmp_path, [BASE | {"prompt": f"P{k}", "label": "A"} | columns for k in range(3)])
        assert said(dataset) == [(None, "first")] * 3
        assert set(columns) <= set(dataset.unread)


def test_numbers_in_columns_of_names_are_not_called_no_votes(tmp_path):
    rows = [NUMBERED | {"ann": a, "ben": b} for a, b in ((1, 2), (2, 0))]
    with pytest.raises(AfzalError, match="ann and ben hold numbers, which may be votes or scores"):
        read_rows(tmp_path, rows)
    named = [{k if k in NUMBERED else f"vote_{k}": v for k, v in row.items()} for row in rows]
    assert [name for name, _ in said(read_rows(tmp_path, named))] == ["ann", "ben"] * 2


def test_votes_in_a_list_state_one_vote_each(tmp_path):
    entry = {"annotator": "ann", "preference": "A", "label": "A"}
    assert said(read_rows(tmp_path, [BASE | {"votes": [entry]}])) == [("ann", "first")]
    with pytest.raises(AfzalError, match="'label' is 'B', but 'preference' is 'A'"):
        read_rows(tmp_path, [BASE | {"votes": [entry | {"label": "B"}]}])
    with pytest.raises(AfzalError):
        read_rows(tmp_path, [BASE | {"votes": [{"annotator": "ann"}]}])


@pytest.mark.parametrize("label", [1, 2, 1.5])
def test_alpaca_farms_preference_and_label_are_one_vote(tmp_path, label):
    row = {"instruction": "Q", "output_1": A, "output_2": B, "preference": 1, "label": label}
    if label == 1:
        assert said(read_rows(tmp_path, [row])) == [(None, "first")]
        return
    with pytest.raises(AfzalError, match=f"'label' is {label:g}, but 'preference' is 1: one row states one vote"):
        read_rows(tmp_path, [row])
