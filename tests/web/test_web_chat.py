"""A chat: conversations, blind order, votes on the disk, the terminal, and the page by keyboard in a real browser."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import urlsplit

import pytest
from helpers_browser import person
from helpers_chat import Words, blind
from helpers_web import SOURCE, lines_of, raw

from afzal import data
from afzal.cli.terminal_chat import Terminal, converse
from afzal.errors import AfzalError
from afzal.records import Comparison
from afzal.web.chat.app import application
from afzal.web.chat.conversation import Conversation
from afzal.web.chat.session import Session


def answered(session: Session, text: str) -> list[str]:
    """Say something; return the answers in the order on the screen."""
    conversation = session.conversation
    round_ = session.say(text)
    told = [conversation.answer(place, lambda keep, text: None, Event()).text for place in range(len(round_.shown))]
    conversation.close()
    return told


def test_seen_models_continue_their_own_conversations():
    ours, theirs = Words("ours"), Words("theirs")
    session = Session(Conversation([ours, theirs], "be brief"))
    answered(session, "one")
    assert answered(session, "two") == ["ours says answer number 2", "theirs says answer number 2"]
    assert ours.asked[1] == (["be brief", "one", "ours says answer number 1", "two"], 1)
    assert theirs.asked[1] == (["be brief", "one", "theirs says answer number 1", "two"], 1)
    session.begin()
    answered(session, "three")
    assert ours.asked[2] == (["be brief", "three"], 2)


def test_blind_the_better_answer_continues_one_conversation(tmp_path):
    ours, theirs = Words("ours"), Words("theirs")
    session = blind(tmp_path / "v", ours, theirs)
    before = ["one"]
    for turn, judged in enumerate(["second", "first", "tie", "both_bad", "skip"]):
        shown = answered(session, f"turn {turn}" if turn else "one")
        assert ours.asked[-1] == theirs.asked[-1] == (before, turn)
        with pytest.raises(AfzalError, match="not been compared yet"):
            session.conversation.say("too early")
        session.judge(judged, 1.5)
        before = [*before, shown[1 if judged == "second" else 0], f"turn {turn + 1}"]
    session.votes.close()
    with pytest.raises(AfzalError, match="no answers to compare"):
        session.judge("first", 1.0)


def test_both_orders_are_shown_and_recorded(tmp_path):
    """Somebody who always prefers "ours" does so in both orders, and the rows say that the first response is better."""
    session = blind(tmp_path / "v", Words("ours"), Words("theirs"))
    places: Counter[int] = Counter()
    for _ in range(20):
        shown = answered(session, "hello")
        place = [text.split()[0] for text in shown].index("ours")
        places[place] += 1
        session.judge("first" if place == 0 else "second", 0.5)
        session.begin()
    tally = session.votes.tally()
    session.votes.close()
    assert min(places[0], places[1]) >= 3
    assert tally["counts"] == {"first": 20, "second": 0, "tie": 0, "both_bad": 0}
    assert tally["win_rate"]["value"] == 1
    items = data.read(tmp_path / "v").items
    votes = [vote for item in items for vote in item.votes]
    assert all(isinstance(v, Comparison) and v.p_first is not None for v in votes)
    for item, vote in zip(items, votes, strict=True):
        assert [r.source for r in item.responses] == ["ours", "theirs"]
        better = vote.first if vote.p_first == 1 else vote.second
        assert item.responses[better].turns[0].content.startswith("ours")
        assert vote.annotator == "ann"
    assert {vote.shown_first for vote in votes} == {0, 1}
    assert len({item.group for item in items}) == 20


def test_a_vote_that_is_taken_back_is_gone_and_its_answers_wait(tmp_path):
    session = blind(tmp_path / "v", Words("ours"), Words("theirs"))
    answered(session, "hello")
    session.judge("first", 1.0)
    assert session.undo() is not None
    assert session.conversation.waits == "vote"
    session.judge("tie", 1.0)
    answered(session, "again")
    assert session.conversation.waits == "vote"
    assert session.undo() is None  # the last answers have no vote yet
    assert session.votes.tally()["counts"]["tie"] == 1
    session.votes.close()
    kinds = [(line["kind"], line.get("outcome")) for line in lines_of(tmp_path / "v")]
    assert kinds == [("pair", "first"), ("undo", None), ("pair", "tie")]
    assert [v.outcome for item in data.read(tmp_path / "v").items for v in item.votes] == ["tie"]


async def request(app: Any, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """One POST to the application: its status and its JSON reply."""
    sent: list[dict[str, Any]] = []
    parts = iter([{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}])

    async def receive() -> dict[str, Any]:
        return next(parts, {"type": "http.disconnect"})

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    scope |= {"headers": [(b"x-afzal-token", b"secret"), (b"content-type", b"application/json")], "root_path": ""}
    await app(scope | {"http_version": "1.1", "scheme": "http", "server": ("a", 1), "client": ("b", 2)}, receive, send)
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent[1:]))


@pytest.mark.parametrize("second", ["/api/vote", "/api/new", "/api/say"])
def test_nothing_happens_to_the_conversation_while_a_vote_is_written(tmp_path, monkeypatch, second):
    """The vote takes long, and its write fails. Meanwhile a second request arrives, as from another tab."""
    session = blind(tmp_path / "v", Words("ours"), Words("theirs"))
    answered(session, "hello")
    app = application(session, "secret", {}, tmp_path / "v")
    started, finish, failures = Event(), Event(), []

    def slow(lines: Any) -> None:
        started.set()
        assert finish.wait(20)
        if not failures:
            failures.append(lines)
            raise AfzalError("no space")

    async def both() -> list[tuple[int, dict[str, Any]]]:
        vote = asyncio.create_task(request(app, "/api/vote", {"outcome": "first"}))
        await asyncio.to_thread(started.wait, 20)
        other = asyncio.create_task(request(app, second, {"outcome": "second", "text": "again"}))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not other.done()
        assert len(session.conversation.rounds) == 1
        finish.set()
        return list(await asyncio.gather(vote, other))

    monkeypatch.setattr(session.votes._votes, "append", slow)
    replies = asyncio.run(both())
    assert (replies[0][0], replies[0][1]["error"]) == (409, "refused")
    # the vote was still due when the second request was considered
    if second == "/api/vote":
        assert (replies[1][0], replies[1][1]["rounds"][0]["judged"]) == (200, "second")
    elif second == "/api/say":
        assert "have not been compared yet" in replies[1][1]["message"]
    else:
        assert replies[1][1]["rounds"] == []
    session.votes.close()


def test_a_disk_that_refuses_leaves_the_answers_to_be_compared(tmp_path, monkeypatch):
    session = blind(tmp_path / "v", Words("ours"), Words("theirs"))
    answered(session, "hello")

    def full(lines: Any) -> None:
        raise AfzalError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(session.votes._votes, "append", full)
        with pytest.raises(AfzalError, match="no space"):
            session.judge("first", 1.0)
    assert session.conversation.waits == "vote"
    session.judge("second", 1.0)
    assert sum(session.votes.tally()["counts"].values()) == 1
    session.votes.close()


def test_answers_that_are_the_same_or_stopped_are_not_compared(tmp_path):
    session = blind(tmp_path / "v", Words("a", words="yes"), Words("b", words="yes"))
    assert answered(session, "hello") == ["yes", "yes"]
    assert session.conversation.waits == "say"
    session.votes.close()
    stopped = Event()
    stopped.set()
    other = blind(tmp_path / "w", Words("a"), Words("b"))
    other.conversation.say("hello")
    for place in (0, 1):
        other.conversation.answer(place, lambda keep, text: None, stopped)
    other.conversation.close()
    assert other.conversation.waits == "say"
    other.votes.close()


def test_the_same_folder_goes_on_and_others_are_refused(tmp_path):
    session = blind(tmp_path / "v", Words("ours"), Words("theirs"))
    answered(session, "hello")
    session.judge("first", 1.0)
    session.votes.close()
    again = blind(tmp_path / "v", Words("ours"), Words("theirs"))
    assert sum(again.votes.tally()["counts"].values()) == 1
    again.votes.close()
    with pytest.raises(AfzalError, match="votes between ours and theirs"):
        blind(tmp_path / "v", Words("ours"), Words("others"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("x")
    with pytest.raises(AfzalError, match="not empty"):
        blind(tmp_path / "full", Words("a"), Words("b"))


def typed(session: Session, *lines: str) -> str:
    """The terminal's output for these typed lines; keys are lines too."""
    waiting, written = list(lines), []

    def line(prompt: str) -> str | None:
        written.append(prompt)
        return waiting.pop(0) if waiting else None

    converse(session, Terminal(line, line, written.append))
    return "".join(written)


def test_the_terminal_by_a_script(tmp_path):
    session = blind(tmp_path / "v", Words("ours"), Words("theirs"))
    told = typed(
        session, "hello", "x", "1", "", "/nope", "again", "2", "/undo", "9", "/tally", "/new", "third", "s", "/quit"
    )
    session.votes.close()
    assert "no such key" in told
    assert "there is no command /nope" in told
    assert "saved: 1 is better" in told
    assert "undone" in told
    assert "[1]\n" in told
    before = told.partition("over theirs")[0]
    assert before.count("[ours]") == before.count("[theirs]") == 0  # headings reveal no names
    assert "1 both bad" in told
    assert [line["kind"] for line in lines_of(tmp_path / "v")] == ["pair", "pair", "undo", "pair"]
    assert len({line["conversation"] for line in lines_of(tmp_path / "v") if line["kind"] == "pair"}) == 1


def test_escape_sequences_of_a_model_do_not_reach_the_terminal():
    told = typed(Session(Conversation([Words("m", words="\x1b[2J gone")], "")), "hello")
    assert "\x1b" not in told
    assert "\\u001b[2J gone" in told


def test_control_c_at_the_prompt_ends_and_keeps_the_votes(tmp_path):
    session = blind(tmp_path / "v", Words("ours"), Words("theirs"))
    lines = iter(["hello", "1"])

    def line(prompt: str) -> str:
        if (entry := next(lines, None)) is None:
            raise KeyboardInterrupt
        return entry

    converse(session, Terminal(line, line, lambda text: None))
    session.votes.close()
    assert [v.outcome for item in data.read(tmp_path / "v").items for v in item.votes] != []


def test_a_model_that_fails_loses_nothing_but_its_turn():
    class Broken(Words):
        def answer(self, *a: Any) -> Any:
            raise AfzalError("no position is left")

    session = Session(Conversation([Broken("m")], ""))
    assert "no position is left" in typed(session, "hello")
    assert session.conversation.rounds == []


@contextmanager
def page(out: Path) -> Iterator[str]:
    """The chat page with two word lists as models, in a separate process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([SOURCE, str(Path(__file__).parents[1])])}
    command = [sys.executable, str(Path(__file__).parents[1] / "helpers_chat.py"), str(out)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def shown(one: Any) -> list[str]:
    return one.page.eval_on_selector_all("main section:last-child article p", "(all) => all.map((p) => p.textContent)")


def test_a_blind_chat_by_keyboard(chromium, tmp_path):
    with page(tmp_path / "v") as address, person(chromium, address) as one:
        one.phase("say")
        one.page.keyboard.type("Hello 1 2 u s")
        one.press("Shift+Enter")
        one.page.keyboard.type("there")
        one.press("Enter")
        one.phase("vote")
        first = shown(one)
        assert sorted(text.split()[0] for text in first) == ["left", "right"]
        one.press("2")
        one.says("saved 1: second is better")
        one.phase("say")
        one.page.keyboard.type("And then?")
        one.press("Enter")
        one.phase("vote")
        one.press("0")
        one.says("saved 2: equal")
        one.press("Escape", "u")
        one.phase("vote")
        one.says("undone")
        one.press("9")
        one.says("saved 2: both bad")
        one.press("Escape", "t")
        one.page.wait_for_selector("dialog table")
        assert "both bad" in one.page.inner_text("dialog")
        one.press("Escape", "n")
        one.page.wait_for_selector(".intro")
        one.page.reload()
        one.phase("say")
        assert one.page.title() == "Chat · Afzal"
    lines = lines_of(tmp_path / "v")
    assert [(x["kind"], x.get("outcome")) for x in lines] == [
        ("pair", "second"), ("pair", "tie"), ("undo", None), ("pair", "both_bad"),
    ]  # fmt: skip
    rows = {row["id"]: row for row in map(json.loads, (tmp_path / "v/items.jsonl").read_text().splitlines())}
    texts = [rows[lines[0]["item"]]["responses"][k]["turns"][0]["content"] for k in lines[0]["shown"]]
    assert texts == first
    assert rows[lines[0]["item"]]["prompt"] == [{"role": "user", "content": "Hello 1 2 u s\nthere"}]
    assert rows[lines[1]["item"]]["prompt"][1]["content"] == first[1]  # the better answer continued
    assert lines[0]["seconds"] >= 0


def test_names_stay_on_the_server_until_they_are_asked_for(tmp_path):
    with page(tmp_path / "v") as address:
        headers = {"X_Afzal_Token": urlsplit(address).path.split("/")[2], "Content_Type": "application/json"}

        def ask(method: str, path: str, body: Any = None, **other: str) -> tuple[int, str]:
            sent = None if body is None else json.dumps(body).encode()
            status, _, said = raw(address, method, path, sent, **{**headers, **other})
            return status, said.decode()

        status, said = ask("POST", "/api/say", {"text": "hi"})
        assert status == 200
        lines = [json.loads(line) for line in said.splitlines()]
        grown = ["", ""]
        for line in lines:
            if "text" in line:
                grown[line["place"]] = grown[line["place"]][: line["keep"]] + line["text"]
        done = {line["place"]: line["done"]["text"] for line in lines if "done" in line}
        assert [done[0], done[1]] == grown
        assert lines[-1]["state"]["names"] is None
        assert lines[-1]["state"]["waits"] == "vote"
        assert "models" not in lines[-1]["state"]
        assert ask("POST", "/api/say", {"text": "again"})[0] == 409  # the vote is due
        assert ask("POST", "/api/vote", {"outcome": "left"})[0] == 400
        assert ask("POST", "/api/vote", {"outcome": "first"}, X_Afzal_Token="wrong")[0] == 401
        assert ask("POST", "/api/vote", {"outcome": "first"}, Origin="http://evil.example")[0] == 403
        assert ask("POST", "/api/vote", {"outcome": "first", "seconds": 2.5})[0] == 200
        assert json.loads(ask("GET", "/api/tally")[1])["models"] == ["left", "right"]
    assert lines_of(tmp_path / "v")[0]["seconds"] == 2.5
