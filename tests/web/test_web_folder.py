"""The page's folder: created, resumed, and refused if it belongs to something else."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from helpers_web import SOURCE, answer, job, opened, pairs, write_rows

from afzal import data
from afzal.errors import AfzalError
from afzal.records import Item, Response
from afzal.web.questions import content_sha256, with_unique_ids


def test_the_same_job_resumes_with_the_same_tokens_and_votes(tmp_path):
    made = job(tmp_path, pairs(5), ("ann", "bob"))
    with opened(made) as folder:
        tokens = dict(folder.tokens)
        answer(folder.session, "ann", folder)
        waiting = folder.session.next("ann")
    with opened(made) as folder:
        assert folder.tokens == tokens
        assert folder.session.counts()["votes"] == 1
        assert folder.session.next("ann") == waiting


def test_tokens_are_secret_and_long(tmp_path):
    with opened(job(tmp_path, pairs(2), ("ann", "bob"))) as folder:
        assert all(len(token) >= 24 for token in folder.tokens)
        assert len(set(folder.tokens)) == 2
    assert (tmp_path / "out" / "page.json").stat().st_mode & 0o077 == 0


def test_annotators_can_be_added_and_nobody_is_lost(tmp_path):
    with opened(job(tmp_path, pairs(2), ("ann",))) as folder:
        first = dict(folder.tokens)
    with opened(job(tmp_path, pairs(2), ("bob", "cem", ""))) as folder:
        assert first.items() <= folder.tokens.items()
        assert list(folder.tokens.values()) == ["ann", "bob", "cem"]


def test_an_address_without_a_name_gets_one_once(tmp_path):
    made = job(tmp_path, pairs(2), ("", ""))
    with opened(made) as folder:
        one, two = folder.tokens
        assert folder.name_of(one) == ""
        assert folder.name_of("x" * 24) is None
        assert folder.sign_in(one, "Dilnoza")
        assert not folder.sign_in(two, "DILNOZA")
        answer(folder.session, "Dilnoza", folder)
    with opened(made) as folder:
        assert folder.name_of(one) == "Dilnoza"
        assert folder.session.counts()["votes"] == 1


@pytest.mark.parametrize("change", ["text", "order", "more"])
def test_rows_that_changed_are_refused(tmp_path, change):
    made = job(tmp_path, pairs(3))
    with opened(made):
        pass
    rows = pairs(4) if change == "more" else pairs(3)[:: -1 if change == "order" else 1]
    if change == "text":
        rows[1]["rejected"] = "worse"
    write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(AfzalError, match="these are not the rows"), opened(made):
        pass


@pytest.mark.parametrize("change", [{"overlap": 2}, {"seed": 1}, {"repeat": 0.5}, {"axes": {"safe": "Which?"}}])
def test_other_rules_are_refused_by_name(tmp_path, change):
    with opened(job(tmp_path, pairs(3))):
        pass
    (name,) = change
    with pytest.raises(AfzalError, match=f"started with {name}"), opened(job(tmp_path, pairs(3), **change)):
        pass


def test_practice_needs_pairs(tmp_path):
    gold = write_rows(tmp_path / "gold.jsonl", [{"prompt": "q", "chosen": "x", "rejected": "y"}])
    made = job(tmp_path, pairs(3), mode="rate", practice=1, gold=str(gold))
    with pytest.raises(AfzalError, match="practice questions are pairs"), opened(made):
        pass


def test_rows_that_cannot_be_used_are_counted(tmp_path):
    with opened(job(tmp_path, [*pairs(2), {"prompt": "p", "chosen": "a", "rejected": ""}])) as folder:
        assert len(folder.task.items) == 2
        assert folder.drops == {"empty_response": 1}


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    with pytest.raises(AfzalError, match="holds no page"), opened(job(tmp_path, pairs(3))):
        pass
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_one_process_at_a_time(tmp_path):
    script = (
        "import sys; sys.path.insert(0, 'TESTS'); from helpers_web import *; from pathlib import Path\n"
        "try:\n    with opened(job(Path('PLACE'), pairs(3))): pass\n"
        "except Exception as error: print(error)\n"
    )
    script = script.replace("PLACE", str(tmp_path)).replace("TESTS", SOURCE.replace("/src", "/tests"))
    with opened(job(tmp_path, pairs(3))):
        told = subprocess.run(
            [sys.executable, "-c", script], env={"PYTHONPATH": SOURCE}, capture_output=True, text=True, check=True
        )
    assert "served by another process" in told.stdout, told.stderr


def test_a_vote_on_an_item_that_is_not_there_is_refused(tmp_path):
    made = job(tmp_path, pairs(3))
    with opened(made) as folder:
        line = answer(folder.session, "ann")
        folder.journal.append([line | {"item": "nowhere"}])
    with pytest.raises(AfzalError, match="not an answer to a question"), opened(made):
        pass


def test_gold_rows_mark_the_rows_of_the_file_whatever_their_order(tmp_path):
    gold = [
        {"prompt": "prompt 1", "chosen": "bad 1", "rejected": "good 1"},
        {"prompt": "q", "chosen": "x", "rejected": "y"},
    ]
    made = job(tmp_path, pairs(3), gold=str(write_rows(tmp_path / "gold.jsonl", gold)))
    with opened(made) as folder:
        assert [bool(item.gold) for item in folder.task.items] == [False, True, False, True]
        marked = folder.task.questions[1]
        assert folder.task.items[1].responses[marked.truth].turns == "bad 1"
        assert folder.task.items[1].responses[0].turns == "good 1"
        assert [q.is_gold for q in folder.task.questions] == [False, True, False, True]


def test_repeated_gold_rows_are_counted_and_contradictory_ones_refused(tmp_path):
    """The last row won, and nothing was said."""
    known = {"prompt": "prompt 1", "chosen": "bad 1", "rejected": "good 1"}
    turned = {"prompt": "prompt 1", "chosen": "good 1", "rejected": "bad 1"}
    made = job(tmp_path, pairs(3), gold=str(write_rows(tmp_path / "gold.jsonl", [known, known, known])))
    with opened(made) as folder:
        assert [bool(item.gold) for item in folder.task.items] == [False, True, False]
        assert folder.drops == {"repeated rows of gold.jsonl": 2}
    made = job(tmp_path, pairs(3), gold=str(write_rows(tmp_path / "gold.jsonl", [known, turned])))
    with pytest.raises(AfzalError, match=r"gold\.jsonl:1 and .*gold\.jsonl:2 state different truths"), opened(made):
        pass


def test_gold_without_a_preference_is_refused(tmp_path):
    row = {
        "afzal": 1,
        "id": "g",
        "prompt": "p",
        "responses": [{"turns": "a"}, {"turns": "b"}],
        "votes": [{"vote": "comparison", "first": 0, "second": 1, "outcome": "tie"}],
    }
    made = job(tmp_path, pairs(3), gold=str(write_rows(tmp_path / "gold.jsonl", [row])))
    with pytest.raises(AfzalError, match="does not say which"), opened(made):
        pass


def test_a_single_response_cannot_be_compared(tmp_path):
    with (
        pytest.raises(AfzalError, match="needs two"),
        opened(job(tmp_path, [{"prompt": "p", "completion": "c"}], mode="pair")),
    ):
        pass


def test_every_pair_of_several_responses_is_asked(tmp_path):
    row = {"afzal": 1, "id": "x", "prompt": "p", "responses": [{"turns": t} for t in "abc"]}
    with opened(job(tmp_path, [row], mode="pair")) as folder:
        seen = set()
        while folder.session.next("ann")["state"] == "ask":
            seen.add(tuple(sorted(answer(folder.session, "ann")["shown"])))
        assert seen == {(0, 1), (0, 2), (1, 2)}


def test_each_axis_is_asked_of_each_item_one_after_another(tmp_path):
    with opened(job(tmp_path, pairs(5), axes={"helpful": "Which helps?", "safe": "Which is safe?"})) as folder:
        lines = [answer(folder.session, "ann") for _ in range(10)]
        assert folder.session.next("ann")["state"] == "done"
        assert [line["axis"] for line in lines] == ["helpful", "safe"] * 5
        assert all(lines[k]["item"] == lines[k + 1]["item"] for k in range(0, 10, 2))


def test_ids_are_made_unique():
    items = [Item(name, "p", (Response("a"),)) for name in ("a", "a", "b", "a#2", "a")]
    assert [item.id for item in with_unique_ids(items)] == ["a", "a#2", "b", "a#2#2", "a#3"]


def test_the_hash_is_of_what_is_shown():
    one = Item("a", "p", (Response("x", "gpt"), Response("y")))
    same = Item("b", "p", (Response("x"), Response("y", "llama")), where="elsewhere", extra={"k": 1})
    other = Item("a", "p", (Response("y"), Response("x")))
    assert content_sha256(one) == content_sha256(same) != content_sha256(other)


def test_items_are_written_without_votes(tmp_path):
    with opened(job(tmp_path, pairs(2))):
        pass
    rows = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["rows.jsonl:1", "rows.jsonl:2"]
    assert all("votes" not in row for row in rows)


@pytest.mark.parametrize("chat", [False, True])
def test_votes_on_a_row_that_changed_since_are_refused(tmp_path, chat):
    rows = [{key: f"{text} \u00e9\u2028" for key, text in row.items()} for row in pairs(3)]
    if chat:
        role = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
        rows = [{key: [{"role": role[key], "content": text}] for key, text in row.items()} for row in rows]
    with opened(job(tmp_path, rows)) as folder:
        for _ in range(3):
            answer(folder.session, "ann", folder)
    out = tmp_path / "out"
    assert data.read(str(out)).items[0].votes
    lines = (out / "items.jsonl").read_text(encoding="utf-8", errors="surrogateescape")
    (out / "items.jsonl").write_text(lines.replace("bad 1", "worse 1"), encoding="utf-8", errors="surrogateescape")
    with pytest.raises(AfzalError, match="has changed since this vote"):
        data.read(str(out))


def test_a_vote_that_is_cut_off_is_counted(tmp_path):
    with opened(job(tmp_path, pairs(2))) as folder:
        for _ in range(2):
            answer(folder.session, "ann", folder)
    votes = tmp_path / "out" / "votes.jsonl"
    votes.write_bytes(votes.read_bytes()[:-9])
    read = data.read(str(tmp_path / "out"))
    assert sum(len(item.votes) for item in read.items) == 1
    assert "votes.jsonl: 1 at the end is cut off in the middle and left out" in read.notes
