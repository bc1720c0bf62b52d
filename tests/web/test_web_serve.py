"""The page in a separate process, over loopback: kills, many people at once, and what a stranger cannot do."""

from __future__ import annotations

import asyncio
import errno
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from helpers_web import SOURCE, first_text, job, lines_of, opened, pairs, raw, served, vote_all, write_rows

from afzal import data
from afzal.errors import AfzalError
from afzal.web.app import CommitQueue
from afzal.web.client import Client, new_id
from afzal.web.replies import STATIC
from benchmarks.annotate import parts_of


def good(asked):
    return {"outcome": "first" if first_text(asked).startswith("good") else "second", "seconds": 1.0}


def test_a_script_votes_resumes_and_exports(tmp_path):
    write_rows(tmp_path / "rows.jsonl", pairs(12))
    arguments = ["rows.jsonl", "--annotators", "ann", "--out", "out", "--export", "prefs.jsonl"]
    with served(*arguments, cwd=tmp_path) as ((address,), process):
        client = Client(address)
        assert client.about()["annotator"] == "ann"
        asked = client.next()
        for _ in range(5):
            asked = client.vote(asked, **good(asked))["next"]
        assert client.undo()["undone"] == {"outcome": lines_of(tmp_path / "out")[4]["outcome"], "strength": 1}
        process.send_signal(signal.SIGKILL)
        process.wait()
    with served(*arguments, cwd=tmp_path) as ((again,), process):
        assert again == address
        client = Client(again)
        assert client.next()["progress"]["done"] == 4
        assert vote_all(client, good) == 8
        assert client.next()["state"] == "done"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    items = data.read(tmp_path / "prefs.jsonl").items
    assert len(items) == 12
    assert all(len(item.votes) == 1 and item.responses[_winner(item)].turns.startswith("good") for item in items)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_page_that_is_ended_at_once_ends_in_order(tmp_path, number):
    """The signal arrives as soon as the address is known, before the server's loop runs."""
    write_rows(tmp_path / "rows.jsonl", pairs(2))
    with served("rows.jsonl", "--annotators", "ann", "--export", "prefs.jsonl", cwd=tmp_path) as (_, process):
        process.send_signal(number)
        assert process.wait(20) == 0
        said = process.stderr.read()
    assert "0 votes" in said
    assert "prefs.jsonl: not written" in said


def _winner(item) -> int:
    (vote,) = item.votes
    return vote.first if vote.outcome == "first" else vote.second


def test_the_script_of_the_documentation_votes(tmp_path):
    page = (Path(__file__).resolve().parents[2] / "docs" / "annotate.md").read_text(encoding="utf-8")
    script = page.partition("```python\n")[2].partition("```")[0]
    write_rows(tmp_path / "rows.jsonl", pairs(4))
    with served("rows.jsonl", "--annotators", "ann", "--out", "out", cwd=tmp_path) as ((address,), _):
        (tmp_path / "script.py").write_text(f"address = {address!r}\n{script}")
        run = [sys.executable, "script.py"]
        subprocess.run(run, cwd=tmp_path, env={"PYTHONPATH": SOURCE}, check=True, timeout=60)
    lines = lines_of(tmp_path / "out")
    assert [line["shown"][line["outcome"] == "second"] for line in lines] == [1] * 4  # "bad" is the shorter


def test_the_page_ends_with_the_last_answer_when_it_is_told_to(tmp_path):
    write_rows(tmp_path / "rows.jsonl", pairs(3))
    write_rows(tmp_path / "gold.jsonl", pairs(1))
    arguments = ["rows.jsonl", "--annotators", "ann,bob", "--gold", "gold.jsonl", "--until-done", "--export", "p.jsonl"]
    with served(*arguments, cwd=tmp_path) as ((first, second), process):
        assert vote_all(Client(first), good) == 3
        assert process.poll() is None  # bob has a gold question left
        assert vote_all(Client(second), good) == 1
        assert process.wait(20) == 0
    assert len(data.read(tmp_path / "p.jsonl").items) == 3
    with served(*arguments, cwd=tmp_path) as (_, process):
        assert process.wait(20) == 0


def test_strangers_get_nothing(tmp_path):
    write_rows(tmp_path / "rows.jsonl", pairs(3))
    with served("rows.jsonl", "--annotators", "ann", "--out", "out", cwd=tmp_path) as ((address,), _):
        token = urlsplit(address).path.strip("/").rpartition("/")[2]
        known = {"X_Afzal_Token": token}
        write = {**known, "Content_Type": "application/json"}
        assert raw(address, "GET", f"/a/{token}/")[0] == 200
        assert raw(address, "GET", "/api/next", **known)[0] == 200
        refused = {
            "a wrong token": raw(address, "GET", "/a/" + "x" * 24 + "/")[0] == 404,
            "no ASCII": raw(address, "GET", f"/a/{token}%E2%80%A6/")[0] == 404,
            "a token in Latin-1": raw(address, "GET", "/api/next", X_Afzal_Token="tök")[0] == 401,
            "no token": raw(address, "GET", "/api/next")[0] == 401,
            "a token that is cut": raw(address, "GET", "/api/next", X_Afzal_Token=token[:-1])[0] == 401,
            "a name that was rebound": raw(address, "GET", "/api/next", Host="evil.example", **known)[0] == 421,
            "another site": raw(address, "POST", "/api/vote", b"{}", Origin="http://evil.example", **write)[0] == 403,
            "a form": raw(address, "POST", "/api/vote", b"{}", **known)[0] == 415,
            "a large body": raw(address, "POST", "/api/vote", b"x" * 70_000, **write)[0] == 413,
            "no JSON": raw(address, "POST", "/api/vote", b"{", **write)[0] == 400,
            "deep JSON": raw(address, "POST", "/api/vote", b"[" * 60_000, **write)[0] == 400,
            "a list": raw(address, "POST", "/api/vote", b"[]", **write)[0] == 400,
            "not UTF-8": raw(address, "POST", "/api/vote", b'{"id": "\xff"}', **write)[0] == 400,
            "the root": raw(address, "GET", "/")[0] == 404,
        }
        assert [name for name, was_refused in refused.items() if not was_refused] == []
        for path in (
            "../annotation.py",
            "..%2fannotation.py",
            "%2e%2e/annotation.py",
            "....//annotation.py",
            "/etc/passwd",
            "page.py",
            "%00",
            "",
        ):
            assert raw(address, "GET", f"/static/{path}")[0] == 404, path
        assert raw(address, "GET", "/static/page.js")[0] == 200
        assert lines_of(tmp_path / "out") == []


def test_a_person_without_a_name_signs_in_once(tmp_path):
    write_rows(tmp_path / "rows.jsonl", pairs(3))
    with served("rows.jsonl", "--annotators", "2", "--out", "out", cwd=tmp_path) as ((one, two), _):
        first, second = Client(one), Client(two)
        assert first.next() == {"state": "sign_in"}
        with pytest.raises(AfzalError, match="characters"):
            first.sign_in(" \u202e ")
        assert first.sign_in("  Gulnora   Oʻktam ") == {"annotator": "Gulnora Oʻktam"}
        assert first.next()["state"] == "ask"
        with pytest.raises(AfzalError, match="this name is taken"):
            second.sign_in("gulnora oʻktam")
        with pytest.raises(AfzalError, match="belongs to"):
            first.sign_in("Other")


HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "{{7*7}} {% raw %} ${x} <%= 1 %>",
    "abc\u202edef\u2066ghi",
    "line\u2028separator\u2029paragraph",
    "",
    "true",
    "Oʻzbekiston, oʼqituvchi, ma'no, o‘zbek",
    "\x00\x1b[31mred\x07",
    "x" * 1_000_000,
    "]]>--></textarea></dialog>",
]


def test_hostile_texts_come_through_as_they_are(tmp_path):
    rows = [
        {"afzal": 1, "id": f"i{k}", "prompt": f"{k} {text}", "responses": [{"turns": text}, {"turns": f"other {text}"}]}
        for k, text in enumerate(HOSTILE)
    ]
    turns = [{"role": ("user", "assistant")[k % 2], "content": f"turn {k} {HOSTILE[0]}"} for k in range(18)]
    answers = [{"turns": [{"role": "assistant", "content": text}]} for text in HOSTILE[:2]]
    chat = [{"afzal": 1, "id": "chat", "prompt": turns[:-1], "responses": answers}]
    for name, some in (("texts", rows), ("chat", chat)):
        write_rows(tmp_path / f"{name}.jsonl", some)
        arguments = [f"{name}.jsonl", "--annotators", "ann", "--out", name, "--order", "file"]
        with served(*arguments, cwd=tmp_path) as ((address,), _):
            client = Client(address)
            asked = client.next()
            for row in some:
                texts = {first_text(asked, 0), first_text(asked, 1)}
                sent = {
                    t["turns"] if isinstance(t["turns"], str) else t["turns"][0]["content"] for t in row["responses"]
                }
                assert texts == sent
                if name == "texts":
                    assert asked["prompt"][0]["parts"][0]["text"] == row["prompt"]
                else:
                    assert [t["parts"][0]["text"] for t in asked["prompt"]] == [t["content"] for t in turns[:-1]]
                asked = client.vote(asked, outcome="tie", note="\ud800 oʻ")["next"]
            assert asked["state"] == "done"


def kills(tmp_path: Path, votes: int, count: int, seed: int) -> None:
    """A client that retries votes through servers that are killed around randomly chosen votes: every acknowledged vote
    is there once, and nothing else is there."""
    random_ = random.Random(seed)
    cuts = sorted(random_.sample(range(votes), count))
    write_rows(tmp_path / "rows.jsonl", pairs(votes))
    acknowledged: list[str] = []
    waiting: tuple[dict, str] | None = None
    killed = 0
    while len(acknowledged) < votes:
        with served("rows.jsonl", "--annotators", "ann", "--out", "out", cwd=tmp_path) as ((address,), process):
            client, doomed = Client(address, timeout=20), threading.Event()

            def kill(process: subprocess.Popen[str] = process, doomed: threading.Event = doomed) -> None:
                doomed.set()
                process.kill()

            try:
                while len(acknowledged) < votes:
                    if killed < count and len(acknowledged) >= cuts[killed]:
                        threading.Timer(random_.uniform(0, 0.012), kill).start()
                        killed += 1
                    waiting = waiting or (client.next(), new_id())
                    client.vote(waiting[0], outcome="first", id=waiting[1])
                    acknowledged.append(waiting[1])
                    waiting = None
            except (OSError, http.client.HTTPException):
                continue
            except (AfzalError, ValueError):
                # the port of a killed server is free, so that another program's server may answer in its place
                if not doomed.is_set():
                    raise
    lines = lines_of(tmp_path / "out")
    assert killed == count
    assert len(set(acknowledged)) == votes
    assert sorted(line["id"] for line in lines) == sorted(acknowledged)
    assert Counter(line["item"] for line in lines) == {f"rows.jsonl:{k + 1}": 1 for k in range(votes)}


@pytest.mark.slow
def test_every_acknowledged_vote_survives_kills(tmp_path):
    kills(tmp_path, votes=60, count=3, seed=0)


@pytest.mark.slow
def test_every_acknowledged_vote_survives_two_hundred_kills(tmp_path):
    kills(tmp_path, votes=2000, count=200, seed=1)


def at_once(tmp_path: Path, people: int, each: int, overlap: int) -> list[dict]:
    """Everybody votes at the same time until nothing is left; returns the journal lines."""
    write_rows(tmp_path / "rows.jsonl", pairs(people * each // overlap))
    names = ",".join(f"p{k}" for k in range(people))
    arguments = ["rows.jsonl", "--annotators", names, "--overlap", str(overlap), "--out", "out"]
    faults: list[BaseException] = []

    def person(address: str) -> None:
        client = Client(address)
        try:
            while (asked := client.next())["state"] != "done":
                if asked["state"] == "wait":
                    time.sleep(0.02)
                else:
                    client.vote(asked, **good(asked))
        except BaseException as error:
            faults.append(error)

    with served(*arguments, cwd=tmp_path) as (addresses, _):
        threads = [threading.Thread(target=person, args=(address,)) for address in addresses]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not faults, faults[0]
    return lines_of(tmp_path / "out")


@pytest.mark.parametrize(("people", "each", "overlap"), [(5, 8, 2), pytest.param(20, 100, 2, marks=pytest.mark.slow)])
def test_many_people_at_once_give_each_question_exactly_the_overlap(tmp_path, people, each, overlap):
    lines = at_once(tmp_path, people, each, overlap)
    assert len(lines) == people * each
    assert len({line["id"] for line in lines}) == len(lines)
    assert set(Counter(line["item"] for line in lines).values()) == {overlap}
    assert len({(line["item"], line["annotator"]) for line in lines}) == len(lines)


@pytest.mark.shared
@pytest.mark.parametrize("rows", [15, pytest.param(550, marks=pytest.mark.slow)])
def test_pandalm_comes_back_vote_by_vote_with_the_sides_as_shown(shared, tmp_path, rows):
    source = json.loads((shared / "data" / "annot" / "pandalm_human3.json").read_text())[:rows]
    asked_rows, said = [], {}
    for k, row in enumerate(source):
        prompt = json.dumps([k, row["instruction"], row["input"]])
        responses = [{"turns": f"{side}: {row[f'response{side}']}"} for side in (1, 2)]
        asked_rows.append({"afzal": 1, "id": str(k), "prompt": prompt, "responses": responses})
        said[prompt] = row
    write_rows(tmp_path / "rows.jsonl", asked_rows)
    names = ["annotator1", "annotator2", "annotator3"]
    shown: dict[tuple[str, str], int] = {}
    with served("rows.jsonl", "--annotators", ",".join(names), "--overlap", "3", "--out", "out", cwd=tmp_path) as (
        addresses,
        _,
    ):
        for name, address in zip(names, addresses, strict=True):

            def choose(asked, name=name):
                prompt = asked["prompt"][0]["parts"][0]["text"]
                left = int(first_text(asked)[0])
                shown[name, prompt] = left - 1
                label = said[prompt][name]
                return {"outcome": "tie" if label == 0 else "first" if label == left else "second", "seconds": 2.0}

            assert vote_all(Client(address), choose) == rows
    items = data.read(tmp_path / "out").items
    votes = [(item, vote) for item in items for vote in item.votes]
    assert len(votes) == 3 * rows
    for item, vote in votes:
        label = said[item.prompt][vote.annotator]
        assert vote.shown_first == shown[vote.annotator, item.prompt]
        assert vote.p_first == (0.5 if label == 0 else float(vote.first == label - 1))
    for name in names:
        firsts = [v.shown_first for _, v in votes if v.annotator == name]
        assert sum(firsts) in (rows // 2, -(-rows // 2))


def test_a_disk_that_refuses_leaves_no_vote_and_the_page_goes_on(tmp_path, monkeypatch):
    """The reply is sent only once the line is on disk; if the write fails, memory agrees with the disk."""
    with opened(job(tmp_path, pairs(4))) as folder:
        real, failing = os.fsync, [True]

        def fsync(descriptor):
            if failing:
                failing.pop()
                raise OSError(errno.ENOSPC, "No space left on device")
            real(descriptor)

        async def run():
            commits = CommitQueue(folder.journal, folder.reopen)
            asked = folder.session.next("ann")
            body = {"id": new_id(), "question": asked["question"], "position": asked["position"], "outcome": "first"}
            step = folder.session.vote("ann", body)
            with pytest.raises(AfzalError, match="cannot write"):
                await commits.add(step.lines)
            assert folder.session.counts()["votes"] == 0
            assert folder.session.next("ann") == asked
            step = folder.session.vote("ann", body)
            await commits.add(step.lines)
            assert folder.session.vote("ann", body).lines == []

        monkeypatch.setattr(os, "fsync", fsync)
        asyncio.run(run())
        assert len(lines_of(tmp_path / "out")) == 1


def test_nobody_waits_for_ever_when_a_write_breaks(tmp_path, monkeypatch):
    with opened(job(tmp_path, pairs(4))) as folder:

        def broken(lines):
            raise ValueError("unforeseen")

        async def run():
            commits = CommitQueue(folder.journal, folder.reopen)
            both = await asyncio.gather(*(commits.add([{"id": str(k)}]) for k in range(2)), return_exceptions=True)
            assert [type(error) for error in both] == [ValueError, ValueError]

        monkeypatch.setattr(folder.journal, "append", broken)
        asyncio.run(asyncio.wait_for(run(), 10))


def test_lines_that_arrive_together_share_a_write(tmp_path, monkeypatch):
    with opened(job(tmp_path, pairs(4))) as folder:
        forced = []
        monkeypatch.setattr(os, "fsync", lambda descriptor: forced.append(os.fstat(descriptor).st_size))

        async def run():
            commits = CommitQueue(folder.journal, folder.reopen)
            await asyncio.gather(*(commits.add([{"id": f"id{k}"}]) for k in range(20)))
            assert [line["id"] for line in lines_of(tmp_path / "out")] == [f"id{k}" for k in range(20)]
            before = len(forced)
            await commits.add([])  # a repeated request waits, but writes nothing
            assert len(forced) == before

        asyncio.run(run())
        assert len(forced) <= 2


@pytest.mark.parametrize("page", sorted(path.name for path in STATIC.glob("*.html")))
def test_a_page_is_small(page):
    assert sum((STATIC / name).stat().st_size for name in parts_of(page)) <= 64 * 1024


def test_the_pages_name_no_other_place_and_make_no_markup_of_texts():
    for path in STATIC.iterdir():
        text = path.read_text("utf-8")
        for word in ("http:", "https:", "innerHTML", "insertAdjacentHTML", "eval(", " style="):
            assert word not in text, (path.name, word)
    assert {name for page in STATIC.glob("*.html") for name in parts_of(page.name)} == set(os.listdir(STATIC))
