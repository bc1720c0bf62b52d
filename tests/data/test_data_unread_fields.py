"""A file is read completely or refused: nothing that changes who won or what was asked is skipped."""

import csv
import json
from pathlib import Path

import pytest

from afzal.data import read
from afzal.data.unread_fields import words_of
from afzal.errors import AfzalError
from afzal.records import Comparison, Message, Rating, preferences, scores

CASES = Path(__file__).parents[3] / "shared" / "cases"
QA = {"prompt": "Q", "completion": "A"}
PAIR = {"prompt": "Q", "chosen": " GOOD", "rejected": " bad"}


def load(folder, rows, name="a.jsonl", **how):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read(path, **how)


def refused(folder, rows, **how):
    with pytest.raises(AfzalError) as caught:
        load(folder, rows, **how)
    return caught.value


def user(text):
    return Message("user", text)


def bot(text):
    return Message("assistant", text)


# --- numbers that name an answer

CHOICE = {"question": "Q", "option_1": "a", "option_2": "GOOD", "option_3": "c", "answer": 2}


@pytest.mark.parametrize(
    "gone", [{"option_1": None}, {"option_1": ""}, {"option_3": None}, {"option_3": None, "option_4": "d"}]
)
def test_a_missing_option_moves_no_other_one_up(tmp_path, gone):
    item = load(tmp_path, [CHOICE, CHOICE | gone]).items[1]
    assert all(item.responses[p.i].turns == (bot("GOOD"),) for p in preferences(item))
    assert len(preferences(item)) == len(item.responses) - 1


def test_votes_belong_to_the_option_of_their_number(tmp_path):
    rows = [CHOICE | {"num_voters": [0, 9, 4]}, CHOICE | {"option_1": None, "num_voters": [0, 9, 4]}]
    assert [scores(item, "voters") for item in load(tmp_path, rows).items] == [(0.0, 9.0, 4.0), (9.0, 4.0)]
    assert "option_1" in refused(tmp_path, [CHOICE, CHOICE | {"option_1": "", "num_voters": [3, 9, 4]}]).what


def test_the_answer_may_not_be_an_option_that_is_missing(tmp_path):
    assert "names option_2" in refused(tmp_path, [CHOICE, CHOICE | {"option_2": None, "option_4": "d"}]).what


# --- labels and numbers

GOOD = [
    True,
    1,
    1.0,
    "1",
    "1.0",
    "true",
    "YES",
    " good",
    "Chosen",
    "accepted",
    "desirable",
    "positive",
    "thumbs_up",
    "win",
]
BAD = [
    False,
    0,
    0.0,
    "0",
    "0.0",
    "False",
    "no",
    "bad ",
    "rejected",
    "undesirable",
    "negative",
    "dislike",
    "thumbs down",
]


@pytest.mark.parametrize(("value", "label"), [(v, 1.0) for v in GOOD] + [(v, 0.0) for v in BAD])
def test_labels_of_the_table_are_read_as_it_says(tmp_path, value, label):
    (item,) = load(tmp_path, [QA | {"label": value}]).items
    assert item.votes == (Rating(0, label, "label"),)


@pytest.mark.parametrize("value", ["1_0", "\uff11", "1__0", "maybe", "goodbad", 2, -1, 0.5, "0x1", "1e", "\u0661"])
def test_any_other_label_refuses_the_file(tmp_path, value):
    assert "'label'" in refused(tmp_path, [QA | {"label": value}]).what


@pytest.mark.parametrize("value", [2, "2", -1, 0.3, 5.0])
def test_a_number_off_the_scale_stops_even_where_bad_rows_are_skipped(tmp_path, value):
    rows = [QA | {"label": k % 2} for k in range(6)] + [QA | {"label": value}]
    assert "another scale" in refused(tmp_path, rows, on_error="drop").why
    vote = {"prompt": "Q", "response_1": "a", "response_2": "b", "winner": 1}
    assert "another scale" in refused(tmp_path, [vote, vote, vote | {"winner": 0}], on_error="drop").why


@pytest.mark.parametrize("value", ["1_0", "\uff15", "1,5", "inf", "nan", "0x10"])
def test_numbers_are_those_of_json(tmp_path, value):
    assert "'margin'" in refused(tmp_path, [PAIR | {"margin": value}]).what


# --- fields that are not read

OPINIONS = {
    "label": "so-so",
    "winner": "model_a",
    "rank": 2,
    "ranking": [2, 1],
    "score": 0.1,
    "scores": [1, 2],
    "reward": 0.0,
    "quality": "bad",
    "rating": "1/5",
    "is_good": False,
    "thumbsUp": False,
    "Thumbs Down": 1,
    "feedback": "negative",
    "helpfulness": 1,
    "human_preference": "none",
    "correct": False,
    "model_score": 3,
    "mark": "bad",
    "verdict of annotator": "rejected",
    "generations": ["A", "B"],
    "response 1": "B",
    "Answer B": "B",
    "solution": "B",
    "weight": 0.5,
}
PROMPTS = {
    "context": "Read this.",
    "history": [["q", "a"]],
    "input": "more",
    "instruction": "Do it.",
    "document": "Long ago",
    "messages": [{"role": "user", "content": "Other"}],
    "functions": [{"name": "f"}],
    "persona": "A pirate",
}


@pytest.mark.parametrize(("name", "value"), [*OPINIONS.items(), *PROMPTS.items()], ids=[*OPINIONS, *PROMPTS])
def test_a_field_that_may_change_the_meaning_refuses_plain_answers(tmp_path, name, value):
    error = refused(tmp_path, [QA, QA | {name: value}], format=None)
    assert f"'{name}'" in error.what or name in error.why
    assert load(tmp_path, [QA, QA | {name: value}], format="prompt_completion").unread == [name]


@pytest.mark.parametrize(("name", "value"), [*PROMPTS.items(), ("winner", "rejected"), ("preferred_id", 1)])
def test_what_is_asked_and_who_won_are_not_passed_over_in_pairs(tmp_path, name, value):
    assert name in str(refused(tmp_path, [PAIR, PAIR | {name: value}]))


NEUTRAL = {
    "source": "web",
    "lang": "en",
    "prompt_id": "x7",
    "num_responses": 2,
    "score_model": "judge-1",
    "topic": "sky",
}


@pytest.mark.parametrize(("name", "value"), NEUTRAL.items())
def test_other_fields_are_named_and_passed_over(tmp_path, name, value):
    data = load(tmp_path, [QA, QA | {name: value}])
    assert (len(data.items), data.unread) == (2, [] if name == "prompt_id" else [name])


@pytest.mark.parametrize(
    "again",
    [
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "GOOD"}]},
        {"question": "Q"},
        {"context": ""},
        {"system": None},
        {"history": []},
        {"conversation": [{"input": "Q", "output": "GOOD"}]},
    ],
)
def test_fields_that_repeat_the_item_or_are_empty_are_no_reason_to_refuse(tmp_path, again):
    assert len(load(tmp_path, [PAIR | again]).items) == 1


def test_names_are_judged_by_their_words():
    assert words_of("thumbsUp_1") == ["thumbs", "up"]
    assert words_of("Response B") == ["response", "b"]
    assert words_of("GPTScore") == ["gpt", "score"] or words_of("GPTScore") == ["gpts", "core"]


def test_a_hint_is_given_only_where_it_works(tmp_path):
    rows = [{"input": f"Q{k}", "output": "A", "reward": k % 2} for k in range(4)]
    error = refused(tmp_path, rows)
    assert "--columns prompt=input,completion=output,label=reward" in error.remedy
    data = load(tmp_path, rows, columns={"prompt": "input", "completion": "output", "label": "reward"})
    assert [item.votes[0].value for item in data.items] == [0.0, 1.0, 0.0, 1.0]
    rows = [row | {"reward": k / 3} for k, row in enumerate(rows)]
    assert "label=reward" not in refused(tmp_path, rows).remedy


def test_skip_bad_is_proposed_only_if_a_row_is_left(tmp_path):
    assert "--skip-bad" in refused(tmp_path, [PAIR, PAIR | {"chosen": None}]).remedy
    assert "--skip-bad" not in refused(tmp_path, [{**PAIR, "chosen": 1}], format="standard").remedy


# --- prompts next to the answers

ANSWERS = {"chosen": "As it is GOOD.", "rejected": "As it is bad."}
DIALOGUE = [{"from": "system", "value": "S"}, {"from": "human", "value": "Q"}]


@pytest.mark.parametrize(
    "prompt",
    [
        {"conversations": DIALOGUE},
        {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]},
        {"dialogue": DIALOGUE, "extra": 1},
        {"conversation": DIALOGUE},
        {"history": DIALOGUE},
        {"question": "Q", "system": "S"},
        {"context": "Q", "system_prompt": "S"},
    ],
)
def test_text_answers_follow_the_dialogue_they_stand_beside(tmp_path, prompt):
    (item,) = load(tmp_path, [prompt | ANSWERS]).items
    assert item.prompt == (Message("system", "S"), user("Q"))
    assert [r.turns for r in item.responses] == [(bot(ANSWERS["chosen"]),), (bot(ANSWERS["rejected"]),)]


@pytest.mark.parametrize("beside", [{"background": "B"}, {"post": "B", "passage": "P"}, {"turns": ["one", "two"]}])
def test_the_common_beginning_is_no_prompt_beside_another_one(tmp_path, beside):
    assert next(iter(beside.keys() - {"post"})) in str(refused(tmp_path, [beside | ANSWERS]))


TURN = [{"role": "user", "content": "Q"}]
SAID = [{"role": "assistant", "content": "A"}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        {"prompt": TURN, "chosen": SAID, "rejected": SAID},
        {"prompt": "Q", "completion": "A"},
        {"prompt": "Q", "completion": "A", "label": True},
        {"messages": TURN + SAID, "label": 1},
        {"messages": TURN + SAID},
        {"prompt": "Q"},
        {"instruction": "Q", "output": "A"},
        {"prompt": "Q", "responses": ["A", "B"], "scores": [1, 2]},
        {"prompt": "Q", "response_0": "A", "response_1": "B", "better_response_id": 1},
        {"prompt": "Q", "response_a": "A", "response_b": "B", "winner": "a"},
    ],
    ids=lambda row: "-".join(row),
)
@pytest.mark.parametrize("name", ["system", "system_prompt", "system_message"])
def test_a_system_message_is_the_first_of_the_prompt_in_every_format(tmp_path, row, name):
    plain, told = load(tmp_path, [row | {name: ""}]), load(tmp_path, [row | {name: "Be brief."}, row])
    assert told.items[0].prompt == (Message("system", "Be brief."), user("Q"))
    assert "Be brief." not in str(plain.items[0].prompt)
    assert told.items[-1].is_chat  # rows without one are also conversations, not texts among conversations


def test_two_system_messages_that_differ_are_damage(tmp_path):
    row = {"system": "S", "conversations": DIALOGUE, **ANSWERS}
    assert load(tmp_path, [row]).items[0].prompt == (Message("system", "S"), user("Q"))
    assert "'system'" in refused(tmp_path, [row | {"system": "T"}]).what


@pytest.mark.parametrize("row", [{"text": "Once", "system": "S"}, {**ANSWERS, "system": "S"}])
def test_a_misplaced_system_message_refuses_the_file(tmp_path, row):
    assert "system" in str(refused(tmp_path, [row]))


# --- turns that are not to be learned, tools

DIALOGUE_OF_TWO = [*TURN, {"role": "assistant", "content": "first"}, *TURN, {"role": "assistant", "content": "last"}]


@pytest.mark.parametrize(
    "mark",
    [{"train": False}, {"weight": 0}, {"loss": False}, {"loss_weight": 0.0}, {"trainable": 0}, {"loss": "false"}],
)
def test_an_answer_marked_as_not_to_be_learned_is_not(tmp_path, mark):
    first = [dict(turn) for turn in DIALOGUE_OF_TWO]
    first[1] |= mark
    (item,) = load(tmp_path, [{"messages": first}]).items
    assert [r.turns for r in item.responses] == [(bot("last"),)]
    last = [dict(turn) for turn in DIALOGUE_OF_TWO]
    last[3] |= mark
    rows = load(tmp_path, [{"messages": last}, {"messages": DIALOGUE_OF_TWO}])
    assert rows.drop_counts == {"mixed_loss_weight": 1}
    chosen = [SAID[0] | mark]
    pairs = [{"prompt": TURN, "chosen": chosen, "rejected": SAID}, {"prompt": TURN, "chosen": SAID, "rejected": SAID}]
    assert load(tmp_path, pairs).drop_counts == {"not_learned": 1}
    asked = [*TURN, SAID[0] | mark, *TURN]
    assert len(load(tmp_path, [{"prompt": asked, "chosen": SAID, "rejected": SAID}]).items) == 1


@pytest.mark.parametrize("mark", [{"weight": 0.5}, {"loss_weight": 2}])
def test_an_answer_is_not_learned_in_part(tmp_path, mark):
    rows = [{"messages": [*TURN, SAID[0] | mark]}, {"messages": TURN + SAID}]
    assert load(tmp_path, rows).drop_counts == {"not_learned": 1}


@pytest.mark.parametrize("key", ["train_detail", "function_call", "mask", "prefix"])
def test_keys_of_a_message_that_are_not_supported_drop_the_row(tmp_path, key):
    rows = [{"messages": [*TURN, SAID[0] | {key: True}]}, {"messages": TURN + SAID}]
    assert load(tmp_path, rows).drop_counts == {"message_field": 1}


def test_other_keys_of_messages_are_named_and_opinions_refuse(tmp_path):
    named = load(tmp_path, [{"messages": [*TURN, SAID[0] | {"name": "Bot", "id": 4}]}])
    assert named.unread == ["messages[].name", "messages[].id"]
    assert "messages[].rating" in refused(tmp_path, [{"messages": [*TURN, SAID[0] | {"rating": 1}]}]).what


@pytest.mark.parametrize(
    ("call", "result"),
    [("function_call", "observation"), ("tool_call", "tool_response"), ("Function-Call", "function response")],
)
def test_tool_calls_are_the_assistants_and_tool_results_are_not(tmp_path, call, result):
    turns = [*DIALOGUE, {"from": call, "value": '{"name": "f"}'}, {"from": result, "value": "5"}]
    answer = {"chosen": {"from": "gpt", "value": "GOOD"}, "rejected": {"from": "gpt", "value": "bad"}}
    (item,) = load(tmp_path, [{"conversations": turns, "tools": '[{"name": "f"}]', **answer}]).items
    assert item.prompt[2:] == (bot('{"name": "f"}'), Message("tool", "5"))
    assert item.responses[0].turns == (bot("GOOD"),)
    assert item.extra["tools"] == [{"name": "f"}]


@pytest.mark.parametrize("tools", ["[{'name': 'f'}]", '[{"name": "f"}]', [{"name": "f"}]])
def test_tools_are_structures_or_damage(tmp_path, tools):
    assert load(tmp_path, [{"messages": TURN + SAID, "tools": tools}]).items[0].extra["tools"] == [{"name": "f"}]
    rows = [{"messages": TURN + SAID, "tools": tools}, {"messages": TURN + SAID, "tools": "f(x) -> y"}]
    assert "'tools'" in refused(tmp_path, rows).what


def test_tools_with_plain_texts_refuse_the_file(tmp_path):
    assert "'tools'" in refused(tmp_path, [PAIR | {"tools": [{"name": "f"}]}]).what


# --- structures in the form of text

SIDE = {side: [*TURN, {"role": "assistant", "content": f'It\'s {side}, "so".\n'}] for side in ("chosen", "rejected")}


@pytest.mark.parametrize(
    "spell", [json.dumps, repr, lambda v: json.dumps(v, indent=1), lambda v: f" {json.dumps(v)}\n"]
)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_messages_in_cells_are_messages(tmp_path, spell, kind):
    row = {side: spell(turns) for side, turns in SIDE.items()}
    path = tmp_path / f"a.{kind}"
    if kind == "csv":
        with path.open("w", newline="") as out:
            csv.writer(out).writerows([row.keys(), row.values()])
    elif kind == "jsonl":
        path.write_text(json.dumps(row) + "\n")
    else:
        pyarrow = pytest.importorskip("pyarrow.parquet")
        pyarrow.write_table(__import__("pyarrow").Table.from_pylist([row]), path)
    (item,) = read(path).items
    assert [r.turns[0].content for r in item.responses] == ['It\'s chosen, "so".\n', 'It\'s rejected, "so".\n']


@pytest.mark.parametrize(
    "cell",
    [
        "[{'role': 'assistant', 'content': 'x'}\n {'role': 'user', 'content': 'y'}]",  # as NumPy prints it
        '[{"role": "assistant", "content": "x',
        "[{'role': 'assistant', 'content': nan}]",
        "[{'role': 'assistant', 'content': 'a' 'b'}]",
        '[{"role": "assistant", "content": "' + "[" * 100_000,
        "[{'role': 'assistant', 'content': " + "(" * 100_000,
    ],
    ids=["numpy", "cut", "nan", "two texts", "open", "deep"],
)
def test_text_that_begins_as_messages_do_is_never_trained_on(tmp_path, cell):
    assert "'chosen'" in refused(tmp_path, [{"prompt": "Q", "chosen": cell, "rejected": "x"}]).what


@pytest.mark.parametrize("answer", ["[1, 2]", '{"a": 1}', "[x](http://y)", "{% if %}", '["from", "value"]', "(a, b)"])
def test_answers_that_are_json_stay_text(tmp_path, answer):
    (item,) = load(tmp_path, [{"prompt": "Q", "chosen": answer, "rejected": "no"}]).items
    assert item.responses[0].turns == answer


def test_lists_of_answers_and_scores_in_cells_are_lists(tmp_path):
    row = {"prompt": "Q", "responses": "['a', 'GOOD']", "scores": "[0.5, 1]"}
    assert preferences(load(tmp_path, [row]).items[0])[0].i == 1
    assert "responses" in str(refused(tmp_path, [row | {"responses": "['a' 'GOOD']"}]))


# --- votes, empty answers, tables by columns

SIDES = [("response_a", "response_b"), ("Response 1", "Response 2"), ("answer_0", "answer_1"), ("outputA", "outputB")]


@pytest.mark.parametrize("sides", SIDES)
def test_rows_of_votes_become_items_whichever_answer_comes_first(tmp_path, sides):
    a, b = sides
    first, second = (name[-1].lower() for name in sides)
    rows = [
        {"question": "Q", a: "GOOD", b: "bad", "preference": first, "worker": "n"},
        {"question": "R", a: "bad", b: "GOOD", "preference": second, "worker": "n"},
        {"question": "Q", a: "bad", b: "GOOD", "preference": second, "worker": "t"},
        {"question": "Q", a: "GOOD", b: "bad", "preference": "tie", "worker": "u"},
    ]
    data = load(tmp_path, rows)
    assert (data.format, data.rows, data.kept) == ("votes", 4, 4)
    assert [len(item.votes) for item in data.items] == [3, 1]
    for item in data.items:
        (pair,) = preferences(item)
        assert item.responses[pair.i].turns == (bot("GOOD"),)
    assert preferences(data.items[0])[0].p == (1 + 1 + 0.5) / 3
    assert data.items[0].votes[1] == Comparison(0, 1, "first", annotator="t", shown_first=1)


@pytest.mark.parametrize("winner", [-2, "-2", -1.0, 0, "0", 3, 1.5])
@pytest.mark.parametrize("on_error", ["raise", "drop"])
def test_a_signed_or_longer_scale_names_no_side(tmp_path, winner, on_error):
    vote = {"prompt": "Q", "response1": "a", "response2": "b", "verdict": 2}
    assert "'verdict'" in refused(tmp_path, [vote, vote, vote | {"verdict": winner}], on_error=on_error).what


@pytest.mark.parametrize("winner", ["left", "c", "", True, "response_c", "???"])
def test_a_winner_that_names_no_side_is_no_vote(tmp_path, winner):
    vote = {"prompt": "Q", "response_a": "a", "response_b": "b", "winner": "a"}
    with pytest.raises(AfzalError):
        load(tmp_path, [vote | {"winner": winner}])


def test_empty_answers_of_votes_are_kept_for_judging_and_cleaned_before_training(tmp_path):
    from afzal.quality import clean

    row = {"instruction": "Q", "response1": "", "response2": "GOOD", "annotator1": 2, "annotator2": 0}
    data = load(tmp_path, [row, row | {"response1": "bad"}])
    assert (len(data.items), data.drop_counts) == (2, {})
    kept, drops = clean(data.items)
    assert (len(kept), [drop.reason for drop in drops]) == (1, ["empty_response"])
    assert load(tmp_path, [PAIR, PAIR | {"chosen": ""}]).drop_counts == {"empty_response": 1}


TABLE = {"prompt": ["Q1", "Q2"], "chosen": ["GOOD1", "GOOD2"], "rejected": ["bad1", "bad2"]}
NUMBERED = {name: dict(zip("01", cells, strict=True)) for name, cells in TABLE.items()}
BY_ROWS = [dict(zip(TABLE, cells, strict=True)) for cells in zip(*TABLE.values(), strict=True)]
TABLES = {
    "list": TABLE,
    "columns": NUMBERED,
    "index": {str(n): row for n, row in enumerate(BY_ROWS)},
    "split": {"columns": list(TABLE), "index": [0, 1], "data": [list(row.values()) for row in BY_ROWS]},
    "table": {"schema": {"fields": []}, "data": BY_ROWS},
    "records": BY_ROWS,
}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("orient", TABLES)
def test_tables_by_columns_are_rows(tmp_path, orient, indent, end):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(TABLES[orient], indent=indent) + end)
    data = read(path)
    assert [(i.prompt, *(r.turns for r in i.responses)) for i in data.items] == [
        ("Q1", "GOOD1", "bad1"),
        ("Q2", "GOOD2", "bad2"),
    ]


def test_one_row_of_messages_is_no_table(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"prompt": TURN, "chosen": SAID, "rejected": SAID}))
    assert read(path).items[0].prompt == (user("Q"),)


# --- one odd row

WHOLE = {"prompt": TURN, "chosen": SAID, "rejected": [{"role": "assistant", "content": "B"}]}


@pytest.mark.parametrize("n", [2, 3, 5, 9])
def test_one_odd_row_of_a_small_file_is_blamed_itself(tmp_path, n):
    rows = [WHOLE] * n
    rows[1] = {k: v for k, v in WHOLE.items() if k != "prompt"}
    assert refused(tmp_path, rows).where == f"{tmp_path / 'a.jsonl'}:2"
    assert len(load(tmp_path, rows, on_error="drop").items) == n - 1


@pytest.mark.parametrize("n", [3, 5, 9])
def test_one_row_with_an_opinion_among_plain_ones_is_named(tmp_path, n):
    error = refused(tmp_path, [QA] * (n - 1) + [QA | {"label": True}])
    assert (error.where, "several kinds" in error.what) == (f"{tmp_path / 'a.jsonl'}:{n}", True)
    error = refused(tmp_path, [QA] * (n - 1) + [PAIR])
    assert error.where == f"{tmp_path / 'a.jsonl'}:{n}"


# --- where a word begins

TEXTS = [
    ("Say किताबें", "Say किताब", "Say"),
    ("A cafe\u0301 x", "A cafe y", "A"),
    ("Flag \U0001f1f0\U0001f1ea", "Flag \U0001f1f0\U0001f1ec", "Flag"),
    ("Fam \U0001f468\u200d\U0001f469", "Fam \U0001f468\u200d\U0001f467", "Fam"),
    ("Hi \U0001f44d\U0001f3fd", "Hi \U0001f44d", "Hi"),
    ("Key 1\ufe0f\u20e3", "Key 1", "Key"),
    ("I don't", "I don", "I"),
    ("It\u2019s so", "It\u2019d do", None),
    ("Pi is 3.14", "Pi is 3.7", "Pi is"),
    ("see foo_bar", "see foo_baz", "see"),
    ("ไทย กำ", "ไทย ก", "ไทย"),
    ("The end. A", "The end. B", "The end."),
    ("天空是蓝", "天空是绿", "天空是"),
]


@pytest.mark.parametrize(("first", "second", "prompt"), TEXTS)
def test_the_common_beginning_ends_where_a_word_and_a_grapheme_do(tmp_path, first, second, prompt):
    rows = [{"chosen": first, "rejected": second}, {"chosen": "The sky is blue", "rejected": "The sky is red"}]
    data = load(tmp_path, rows)
    if prompt is None:
        assert data.drop_counts == {"no_common_prompt": 1}
        return
    item = data.items[0]
    assert item.prompt == prompt
    assert [prompt + r.turns for r in item.responses] == [first, second]


# --- the shared small inputs


def case(name):
    path = CASES / name
    if not path.exists():
        pytest.skip("the shared cases are not here")
    return path


@pytest.mark.shared
def test_the_shared_inputs_come_out_as_stated():
    for item in read(case("mc.jsonl")).items:
        assert {item.responses[p.i].turns[0].content for p in preferences(item)} == {"WIN"}
    for item in read(case("kto_goodbad.jsonl")).items:
        assert item.responses[0].turns.startswith("WIN") == bool(item.votes[0].value)
    assert all(item.prompt[-1].role == "user" for item in read(case("sharegpt_text_answers.jsonl")).items)
    votes = read(case("votes_long.csv"))
    assert (len(votes.items), sum(len(item.votes) for item in votes.items)) == (5, 10)
    assert sum(v.outcome == "tie" for item in votes.items for v in item.votes) == 2
    (item,) = read(case("tool_roles.jsonl")).items
    assert [m.role for m in item.prompt] == ["user", "assistant", "tool"]
    assert len(read(case("columns.json")).items) == 3


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("around", [{}, {"test": BY_ROWS}, {"version": "1"}, {"errors": []}])
@pytest.mark.parametrize("name", ["data", "rows", "train"])
def test_an_object_that_holds_the_table_is_its_rows(tmp_path, name, around, indent):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({name: BY_ROWS, **around}, indent=indent))
    assert [i.prompt for i in read(path).items] == ["Q1", "Q2"]


def test_lists_of_one_length_are_columns_even_if_one_is_called_data(tmp_path):
    texts, said = {"prompt": "Q", "answer1": "a", "answer2": "b"}, [{"type": "pairwise", "value": {"selected": "left"}}]
    votes = [{"completed_by": 1, "result": said}]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"data": [texts, texts], "annotations": [votes, votes]}))
    data = read(path)
    assert (data.format, len(data.items)) == ("label_studio", 2)


@pytest.mark.parametrize(
    ("name", "mark", "marks"),
    [("a.csv", ";", "semicolons"), ("a.csv", "\t", "tabs"), ("a.csv", "|", "bars"), ("a.tsv", ",", "commas")],
)
def test_a_table_with_another_separator_says_so(tmp_path, name, mark, marks):
    (tmp_path / name).write_text(f"prompt{mark}chosen{mark}rejected\nq{mark}a{mark}b\n")
    with pytest.raises(AfzalError, match=f"the header is one cell with {marks}"):
        read(tmp_path / name)


def test_names_of_columns_have_no_blanks_around_them(tmp_path):
    (tmp_path / "a.csv").write_text("prompt , chosen, rejected\nQ, good,bad\n")
    (item,) = read(tmp_path / "a.csv").items
    assert (item.prompt, item.responses[0].turns) == ("Q", " good")


def test_the_columns_of_a_hint_can_be_pasted(tmp_path):
    (tmp_path / "a.csv").write_text("User Prompt,Good Answer,Bad Answer\nQ,good,bad\n")
    with pytest.raises(AfzalError) as refused:
        read(tmp_path / "a.csv")
    assert refused.value.remedy.endswith("--columns 'prompt=User Prompt,chosen=Good Answer,rejected=Bad Answer'")


@pytest.mark.parametrize("cut", ['{"prompt": "Q', '{"prompt": "Q\x01"}', '{"prompt": '])
def test_a_fault_in_json_names_its_place_once(tmp_path, cut):
    (tmp_path / "a.jsonl").write_text(cut + "\n")
    with pytest.raises(AfzalError, match="at character") as refused:
        read(tmp_path / "a.jsonl")
    assert "at at" not in str(refused.value)
