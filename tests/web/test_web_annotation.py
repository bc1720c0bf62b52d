"""The page's logic, without HTTP."""

from __future__ import annotations

import json
from itertools import count

import pytest
from helpers_web import Clock, answer, first_text, job, opened, pairs

from afzal import data
from afzal.cli import main
from afzal.web.export import export
from afzal.web.queue import LEASE_SECONDS
from afzal.web.validation import RequestError

ids = (f"request{n:06d}" for n in count())


def body(asked, **said):
    return {"id": next(ids), "question": asked["question"], "position": asked["position"], **said}


def test_a_vote_is_a_line_with_the_sides_as_shown(tmp_path):
    with opened(job(tmp_path, pairs(4), axes={"helpful": "Which helps?"})) as folder:
        asked = folder.session.next("ann")
        said = body(asked, outcome="second", strength=2, seconds=3.5, idle=1, note="a note", flag=True)
        step = folder.session.vote("ann", said)
        (line,) = step.lines
        item = next(i for i in folder.task.items if i.id == line["item"])
        assert [item.responses[k].turns for k in line["shown"]] == [first_text(asked), first_text(asked, 1)]
        known = {
            k: line[k] for k in ("annotator", "axis", "kind", "outcome", "strength", "seconds", "idle", "note", "flag")
        }
        assert known == {
            "annotator": "ann",
            "axis": "helpful",
            "kind": "pair",
            "outcome": "second",
            "strength": 2,
            "seconds": 3.5,
            "idle": 1,
            "note": "a note",
            "flag": True,
        }
        assert line["at"] == "2027-01-15T08:00:00.000Z"
        assert (line["repeat_of"], line["gold"], line["retracts"]) == (None, False, None)
        assert len(line["item_sha256"]) == 64
        assert step.reply["saved"]["outcome"] == "second"
        assert step.reply["next"]["question"] != asked["question"]


def test_the_same_id_is_the_same_answer(tmp_path):
    with opened(job(tmp_path, pairs(4))) as folder:
        said = body(folder.session.next("ann"), outcome="first")
        first = folder.session.vote("ann", said)
        again = folder.session.vote("ann", said)
        assert again.lines == []
        assert again.reply == first.reply
        assert folder.session.counts() == {"votes": 1, "gold": 0, "skips": 0}
        undo = {"id": next(ids)}
        assert len(folder.session.undo("ann", undo).lines) == 1
        again = folder.session.undo("ann", undo)
        assert (again.lines, again.reply["undone"]) == ([], {"outcome": "first", "strength": 1})
        assert "saved" not in again.reply  # the page would call it a vote
        assert folder.session.counts() == {"votes": 0, "gold": 0, "skips": 0}


def test_an_answer_that_was_retracted_is_not_cast_again_by_a_late_request(tmp_path):
    with opened(job(tmp_path, pairs(4))) as folder:
        said = body(folder.session.next("ann"), outcome="first")
        folder.session.vote("ann", said)
        folder.session.undo("ann", {"id": next(ids)})
        assert folder.session.vote("ann", said).lines == []
        assert folder.session.counts()["votes"] == 0


def test_an_id_of_somebody_else_is_refused(tmp_path):
    with opened(job(tmp_path, pairs(4), ("ann", "bob"))) as folder:
        said = body(folder.session.next("ann"), outcome="first")
        folder.session.vote("ann", said)
        with pytest.raises(RequestError, match="another answer"):
            folder.session.vote("bob", body(folder.session.next("bob"), outcome="first") | {"id": said["id"]})


def test_an_answer_to_an_old_question_is_refused(tmp_path):
    with opened(job(tmp_path, pairs(4))) as folder:
        asked = folder.session.next("ann")
        folder.session.vote("ann", body(asked, outcome="first"))
        for stale in (body(asked, outcome="second"), body(asked, outcome="second") | {"question": "0" * 16}):
            with pytest.raises(RequestError) as caught:
                folder.session.vote("ann", stale)
            assert (caught.value.status, caught.value.code) == (409, "stale")


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": "short"},
        {"id": "../../../etc"},
        {"id": 5},
        {"question": None},
        {"position": "0"},
        {"position": True},
        {"outcome": "left"},
        {"outcome": None},
        {"outcome": ["first"]},
        {"strength": 3},
        {"strength": True},
        {"strength": "2"},
        {"seconds": -1},
        {"seconds": "1"},
        {"seconds": float("nan")},
        {"seconds": float("inf")},
        {"seconds": 1e12},
        {"seconds": True},
        {"idle": [1]},
        {"note": 5},
        {"note": "x" * 10_001},
        {"flag": "yes"},
        {"heard": [1, -1]},
        {"heard": "all"},
    ],
)
def test_what_a_client_sends_is_checked(tmp_path, wrong):
    with opened(job(tmp_path, pairs(4))) as folder:
        said = body(folder.session.next("ann"), outcome="first") | wrong
        with pytest.raises(RequestError) as caught:
            folder.session.vote("ann", said)
        assert caught.value.status == 400
        assert folder.session.counts()["votes"] == 0


def test_a_skip_has_a_reason_and_the_person_does_not_see_the_question_again(tmp_path):
    with opened(job(tmp_path, pairs(2))) as folder:
        asked = folder.session.next("ann")
        with pytest.raises(RequestError, match="reason"):
            folder.session.skip("ann", body(asked, reason="bored"))
        (line,) = folder.session.skip("ann", body(asked, reason="broken")).lines
        assert (line["kind"], line["reason"]) == ("skip", "broken")
        assert "outcome" not in line
        answer(folder.session, "ann")
        assert folder.session.next("ann")["state"] == "done"
        assert folder.session.next("ann")["summary"] == {
            "votes": 1,
            "skips": 1,
            "repeats": 0,
            "consistent": 0,
            "seconds": 0.0,
        }


def test_undo_with_nothing_to_undo_is_refused(tmp_path):
    with opened(job(tmp_path, pairs(2))) as folder, pytest.raises(RequestError, match="nothing"):
        folder.session.undo("ann", {"id": next(ids)})


def test_a_clock_that_is_set_back_makes_nobody_wait(tmp_path):
    clock = Clock()
    with opened(job(tmp_path, pairs(1), ("ann", "bob")), clock) as folder:
        assert folder.session.next("ann")["state"] == "ask"
        clock.now -= 86_400
        assert folder.session.next("bob")["state"] == "wait"
        clock.now += LEASE_SECONDS
        assert folder.session.next("bob")["state"] == "ask"


def test_undo_says_what_was_taken_back_and_shows_it_again(tmp_path):
    with opened(job(tmp_path, pairs(3))) as folder:
        asked = folder.session.next("ann")
        (vote,) = folder.session.vote("ann", body(asked, outcome="second", strength=2)).lines
        step = folder.session.undo("ann", {"id": next(ids)})
        assert step.reply["undone"] == {"outcome": "second", "strength": 2}
        assert step.lines[0]["retracts"] == vote["id"]
        assert step.reply["next"] == asked


def test_a_second_tab_gets_nothing_until_it_takes_the_work(tmp_path):
    with opened(job(tmp_path, pairs(3))) as folder:
        session = folder.session
        asked = session.next("ann", "tab-one")
        assert session.next("ann", "tab-two") == {"state": "elsewhere"}
        assert session.next("ann", "tab-two", take_over=True) == asked
        with pytest.raises(RequestError) as caught:
            session.vote("ann", body(asked, outcome="first", tab="tab-one"))
        assert caught.value.code == "elsewhere"
        session.vote("ann", body(asked, outcome="first", tab="tab-two"))
        session.leave("ann", "tab-two")
        assert session.next("ann", "tab-one")["state"] == "ask"


def test_who_closes_the_page_frees_the_question(tmp_path):
    with opened(job(tmp_path, pairs(1), ("ann", "bob"))) as folder:
        asked = folder.session.next("ann", "tab-of-ann")
        folder.session.leave("ann", "another-tab")
        assert folder.session.next("bob")["state"] == "wait"
        folder.session.leave("ann", "tab-of-ann")
        assert folder.session.next("ann", "tab-of-ann-again") == asked
        assert folder.session.next("bob")["state"] == "wait"
        folder.session.leave("ann", "tab-of-ann-again")
        assert folder.session.next("bob")["state"] == "ask"
        assert folder.session.next("ann", "tab-of-ann")["state"] == "wait"


def test_nothing_that_is_sent_names_models_items_or_votes(tmp_path):
    rows = [
        {
            "afzal": 1,
            "id": f"secret-id-{k}",
            "prompt": f"prompt {k}",
            "responses": [{"turns": f"a {k}", "source": "secret-gpt"}, {"turns": f"b {k}", "source": "secret-llama"}],
            "votes": [{"vote": "comparison", "first": 0, "second": 1, "outcome": "first", "annotator": "secret-bob"}],
            "extra": {"model": "secret-model"},
        }
        for k in range(3)
    ]
    with opened(job(tmp_path, rows, repeat=0.5)) as folder:
        said = [json.dumps(folder.session.about())]
        while (asked := folder.session.next("ann"))["state"] == "ask":
            said += [json.dumps(asked), json.dumps(folder.session.vote("ann", body(asked, outcome="first")).reply)]
        assert "secret" not in "".join(said)
        assert "shown" not in "".join(said)
        assert len(said) == 7


def test_practice_says_which_is_better_and_why(tmp_path):
    gold = tmp_path / "gold.jsonl"
    gold.write_text(json.dumps(pairs(1)[0] | {"prompt": "known", "feedback": "Because."}) + "\n")
    with opened(job(tmp_path, pairs(3), gold=str(gold), practice=1)) as folder:
        asked = folder.session.next("ann")
        assert asked["practice"]
        better = "first" if first_text(asked).startswith("good") else "second"
        said = body(asked, outcome=better)
        reply = folder.session.vote("ann", said).reply
        assert folder.session.vote("ann", said).reply == reply  # the first reply was lost on the way
        assert reply["feedback"] == {"right": True, "better": better, "why": "Because."}
        assert not reply["next"]["practice"]
        folder.session.undo("ann", {"id": next(ids)})
        reply = folder.session.vote("ann", body(folder.session.next("ann"), outcome="tie")).reply
        assert not reply["feedback"]["right"]
        assert "feedback" not in folder.session.vote("ann", body(reply["next"], outcome="first")).reply


def test_the_summary_counts_consistent_repeats(tmp_path):
    with opened(job(tmp_path, pairs(60), repeat=0.3)) as folder:
        while (asked := folder.session.next("ann"))["state"] == "ask":
            better = "first" if first_text(asked).startswith("good") else "second"
            folder.session.vote("ann", body(asked, outcome=better, seconds=2))
        summary = asked["summary"]
        assert summary["repeats"] > 5
        assert summary["consistent"] == summary["repeats"]
        assert summary["seconds"] == 2 * summary["votes"]
    (tmp_path / "left").mkdir()
    with opened(job(tmp_path / "left", pairs(60), repeat=0.3)) as folder:
        while (asked := folder.session.next("ann"))["state"] == "ask":
            folder.session.vote("ann", body(asked, outcome="first"))
        assert asked["summary"]["consistent"] == 0


def test_the_export_holds_every_vote_and_trains_on_the_first_answers(tmp_path, capsys):
    gold = tmp_path / "gold.jsonl"
    gold.write_text(json.dumps({"prompt": "known", "chosen": "good g", "rejected": "bad g"}) + "\n")
    with opened(job(tmp_path, pairs(60), ("ann", "bob"), overlap=2, repeat=0.2, gold=str(gold))) as folder:
        for name in ("ann", "bob"):
            while (asked := folder.session.next(name))["state"] == "ask":
                better = "first" if first_text(asked).startswith("good") else "second"
                answer(folder.session, name, folder, outcome=better, seconds=1.5)
        repeats = sum(folder.session.next(name)["summary"]["repeats"] for name in ("ann", "bob"))
    assert export(tmp_path / "out", tmp_path / "prefs.jsonl") == 61
    items = data.read(tmp_path / "prefs.jsonl").items
    votes = [v for item in items for v in item.votes]
    assert repeats > 5
    assert len(votes) == 122 + repeats
    assert sum(v.weight == 0 for v in votes) == repeats + 2
    assert all(
        item.responses[v.first if v.outcome == "first" else v.second].turns.startswith("good")
        for item in items
        for v in item.votes
    )
    assert {v.shown_first for v in votes} == {0, 1}
    assert all(v.shown_first == v.first and v.seconds == 1.5 for v in votes)
    assert [bool(item.gold) for item in items] == [False] * 60 + [True]
    for source in ("out", "prefs.jsonl"):
        assert main(["aggregate", str(tmp_path / source), "--resamples", "20"]) == 0
    told = capsys.readouterr().out
    assert told.count("ann  agreement") == 2
