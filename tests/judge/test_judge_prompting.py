"""Asking judges: requests, stored replies, the cost of a faulty server, and killed runs that ask only the rest."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from afzal.errors import AfzalError
from afzal.judge import pointwise, prompting
from afzal.judge.games import Pair, games_of, pairs_of
from afzal.records import Item, Response
from afzal.servers.cache import Cache, Reply, key_of
from afzal.servers.client import IN_A_ROW, Server, Unreachable, key_from

CHOICES = {"A": "first", "B": "second", "TIE": "tie"}
PROMPT = "{{ prompt }}|{{ first }}|{{ second }}"


def asking(**more) -> prompting.PromptSettings:
    return prompting.PromptSettings("be fair", PROMPT, prompting.by_choices(CHOICES), **more)


def pairs(n: int) -> list[Pair]:
    return [Pair(k, 0, 1, f"q{k}", (f"good {k}", f"bad {k}")) for k in range(n)]


def fair(messages, sampling) -> Reply:
    """A judge that finds the good answer in either position."""
    _, first, _ = messages[-1]["content"].split("|")
    return Reply(f"VERDICT: {'A' if first.startswith('good') else 'B'}", tokens_in=10, tokens_out=3)


def test_both_orders_name_the_same_answer(tmp_path):
    games = games_of(pairs(4), "both")
    with Cache(tmp_path / "replies.sqlite") as cache:
        rulings = prompting.play_games(games, asking(), fair, cache, name="fair")
    assert [r.outcome for r in rulings] == ["first"] * 8
    assert {r.tokens for r in rulings} == {(10, 3)}


def test_the_second_run_asks_nothing_and_a_new_reader_neither(tmp_path):
    games, calls = games_of(pairs(5), "both"), Counter()

    def counted(messages, sampling):
        calls["asked"] += 1
        return fair(messages, sampling)

    for _ in range(2):
        with Cache(tmp_path / "replies.sqlite") as cache:
            prompting.play_games(games, asking(), counted, cache, name="j")
    other = prompting.PromptSettings("be fair", PROMPT, prompting.by_choices({"A": "second", "B": "first"}))
    with Cache(tmp_path / "replies.sqlite") as cache:
        turned = prompting.play_games(games, other, counted, cache, name="j")
        assert calls["asked"] == len(cache) == 10
    assert {r.outcome for r in turned} == {"second"}  # opened again
    with Cache(tmp_path / "replies.sqlite") as cache:
        prompting.play_games(
            games, prompting.PromptSettings("be kind", PROMPT, prompting.by_choices(CHOICES)), counted, cache, name="j"
        )
    assert calls["asked"] == 20  # another question


def test_text_of_an_answer_is_never_a_template(tmp_path):
    hostile = Pair(0, 0, 1, "{{ 7 * 7 }}", ("{% for x in range(10**9) %}x{% endfor %}", "{{ first.__class__ }}"))
    (request,) = prompting.PromptBuilder(asking()).requests(games_of([hostile], "first")[0])
    assert request.messages[-1]["content"] == "|".join((hostile.prompt, *hostile.answers))


@pytest.mark.parametrize("prompt", ["{{ other }}", "{{ first", "{{ first.__class__.__mro__ }}", "{% include 'x' %}"])
def test_a_prompt_that_does_not_render_is_reported(prompt):
    with pytest.raises(AfzalError, match="does not render"):
        prompting.PromptBuilder(prompting.PromptSettings("", prompt, prompting.by_choices(CHOICES))).requests(
            games_of(pairs(1), "first")[0]
        )


def test_answers_scored_alone(tmp_path):
    alone = prompting.PromptSettings(
        "", "{{ prompt }}|{{ answer }}", prompting.by_pattern(r"SCORE: (\d+)"), pointwise=True
    )
    score = lambda messages, sampling: Reply(f"SCORE: {9 if '|good' in messages[-1]['content'] else 4}")  # noqa: E731
    with Cache(tmp_path / "c.sqlite") as cache:
        (up,) = prompting.play_games(games_of(pairs(1), "first"), alone, score, cache, name="s")
        assert len(cache) == 2
    assert up.outcome == "first"
    smaller = prompting.PromptSettings("", alone.prompt, alone.parse, pointwise=True, larger_is_better=False)
    with Cache(tmp_path / "c.sqlite") as cache:
        (down,) = prompting.play_games(games_of(pairs(1), "first"), smaller, score, cache, name="s")
    assert down.outcome == "second"


def test_random_orders_are_a_function_of_the_texts():
    games = games_of(pairs(200), "random", seed=1)
    again = games_of(list(reversed(pairs(200))), "random", seed=1)
    assert {g.pair: g.swapped for g in games} == {g.pair: g.swapped for g in again}
    assert 70 < sum(g.swapped for g in games) < 130


def test_every_sample_is_a_separate_question(tmp_path):
    games, seeds = games_of(pairs(1), "first", samples=3), []
    with Cache(tmp_path / "c.sqlite") as cache:
        prompting.play_games(
            games,
            asking(temperature=1.0, seed=5),
            lambda m, s: (seeds.append(s["seed"]), fair(m, s))[1],
            cache,
            name="j",
        )
    assert sorted(seeds) == [5, 6, 7]


class Script(BaseHTTPRequestHandler):
    """A server that gives the replies in its list in turn; after that, good ones."""

    plan: ClassVar[list[str]] = []
    seen: ClassVar[list[dict]] = []
    keys: ClassVar[set[str]] = set()
    lock = threading.Lock()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.lock:
            self.seen.append(body)
            self.keys.add(self.headers.get("authorization", ""))
            step = self.plan.pop(0) if self.plan else "ok"
        good = {
            "choices": [{"message": {"content": "VERDICT: A"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 5},
        }
        if step.isdigit():
            self.send_response(int(step))
            self.send_header("retry-after", "7")
            self.end_headers()
            self.wfile.write(b"busy")
        elif step.startswith("long "):
            self._answer(400, step[5:])
        elif step == "html":
            self._answer(200, "<html>Bad gateway</html>")
        elif step == "cut":
            self.send_response(200)
            self.send_header("content-length", "9999")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
        elif step == "open":
            self._answer(200, json.dumps({"choices": [{"message": {"content": "VERDICT: A"}, "finish_reason": None}]}))
        elif step == "odd":
            choice = {"message": {"content": "\ud83d fine"}, "finish_reason": "stop"}
            self._answer(200, json.dumps({"choices": [choice], "usage": ["none"]}))
        elif step == "empty":
            self._answer(200, json.dumps({"choices": []}))
        else:
            self._answer(200, json.dumps(good))

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    class Own(Script):
        plan, seen, keys, lock = [], [], set(), threading.Lock()

    running = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}/v1", Own
    running.shutdown()
    running.server_close()


@pytest.mark.parametrize(
    ("faults", "waits"),
    [
        (["429"], [7.0]),
        (["500", "503"], [7.0, 7.0]),
        (["html"], [1.0]),
        (["cut"], [1.0]),
        (["open", "empty"], [1.0, 2.0]),
        (["529"], [7.0]),
        (["502", "html", "cut", "504"], [7.0, 2.0, 4.0, 7.0]),
    ],
)
def test_faults_are_tried_again_and_counted(server, faults, waits):
    url, script = server
    script.plan[:] = faults
    slept: list[float] = []
    asker = Server(url, "m", sleep=slept.append)
    reply = asker.ask([{"role": "user", "content": "?"}], {"temperature": 0})
    assert (reply.text, reply.tokens_in) == ("VERDICT: A", 5)
    assert len(script.seen) == len(faults) + 1
    assert slept == waits
    assert sum(asker.faults.values()) == len(faults)


@pytest.mark.parametrize("status", ["400", "401", "403", "404", "422"])
def test_a_refusal_is_not_tried_again(server, status):
    url, script = server
    script.plan[:] = [status]
    with pytest.raises(AfzalError, match=f"status {status}"):
        Server(url, "m", sleep=lambda s: None).ask([], {})
    assert len(script.seen) == 1


@pytest.mark.parametrize(
    "said",
    [
        '{"error": {"code": "context_length_exceeded", "message": "Please reduce the messages."}}',
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens",
        "the request exceeds the available context size",
        "prompt is too long: 210000 tokens > 200000 maximum",
        "The input (9000 tokens) is longer than the model's context",
    ],
)
def test_one_request_that_is_too_long_is_no_verdict_and_ends_nothing(server, tmp_path, said):
    url, script = server
    games = games_of(pairs(3), "first")
    with Cache(tmp_path / "c.sqlite") as cache:
        script.plan[:] = ["ok", f"long {said}", "ok"]
        rulings = prompting.play_games(games, asking(), Server(url, "m").ask, cache, name="j", concurrency=1)
        assert [r.outcome for r in rulings] == ["first", "none", "first"]
        assert rulings[1].why == "the request is too long for the server's model"
        assert len(cache) == 2  # a restarted server may read more
        again = prompting.play_games(games, asking(), Server(url, "m").ask, cache, name="j")
    assert [r.outcome for r in again] == ["first"] * 3


def test_a_server_that_is_down_is_given_up_after_a_bound(server):
    url, script = server
    script.plan[:] = ["503"] * 100
    asker = Server(url, "m", attempts=3, sleep=lambda s: None)
    for _ in range(IN_A_ROW + 3):
        with pytest.raises(Unreachable, match="run the same command again"):
            asker.ask([], {})
    assert len(script.seen) == 3 * IN_A_ROW  # after five requests in a row nothing more is sent


def test_no_server_at_all():
    asker = Server("http://127.0.0.1:9/v1", "m", attempts=2, sleep=lambda s: None)
    with pytest.raises(Unreachable, match="no connection"):
        asker.ask([], {})


@pytest.mark.parametrize("url", ["127.0.0.1:9/v1", "http://[::1/v1"])
def test_an_invalid_address_is_not_tried_again(url):
    with pytest.raises(AfzalError, match="url is not a valid URL"):
        Server(url, "m", sleep=lambda s: pytest.fail("tried again")).ask([], {})


def test_if_plain_texts_cannot_be_sent_the_remedy_says_so(server):
    url, script = server
    script.plan[:] = ["404"]
    with pytest.raises(AfzalError, match="not every server has: if so, write prompts as messages"):
        Server(url, "m").complete("Once", {})


def test_half_a_surrogate_pair_and_an_odd_usage_are_no_obstacle(server):
    url, script = server
    script.plan[:] = ["odd"]
    reply = Server(url, "m", sleep=lambda s: pytest.fail("tried again")).ask([], {})
    assert (reply.text, reply.tokens_in) == ("? fine", 0)


def test_the_key_is_sent_and_never_written(server, tmp_path, monkeypatch):
    url, script = server
    monkeypatch.setenv("SECRET_KEY_OF_TEST", "sk-very-secret")
    asker = Server(url, "m", key_from("SECRET_KEY_OF_TEST"))
    with Cache(tmp_path / "c.sqlite") as cache:
        prompting.play_games(games_of(pairs(2), "both"), asking(), asker.ask, cache, name="j")
    assert script.keys == {"Bearer sk-very-secret"}
    assert "sk-very-secret" not in repr(asker)
    for path in tmp_path.iterdir():
        assert b"sk-very-secret" not in path.read_bytes()
    with pytest.raises(AfzalError, match="NOT_SET_AT_ALL is not set"):
        key_from("NOT_SET_AT_ALL")


def test_errors_are_never_stored(server, tmp_path):
    url, script = server
    script.plan[:] = ["ok"] * 3 + ["503"] * 50
    games = games_of(pairs(6), "first")
    with Cache(tmp_path / "c.sqlite") as cache:
        with pytest.raises(Unreachable):
            prompting.play_games(
                games, asking(), Server(url, "m", attempts=2, sleep=lambda s: None).ask, cache, name="j", concurrency=1
            )
        assert len(cache) == 3
        script.plan.clear()
        before = len(script.seen)
        rulings = prompting.play_games(games, asking(), Server(url, "m").ask, cache, name="j")
    assert [r.outcome for r in rulings] == ["first"] * 6
    assert len(script.seen) - before == 3


def test_a_full_disk_is_reported_and_loses_nothing_that_was_kept(tmp_path):
    with Cache(tmp_path / "replies.sqlite") as cache:
        cache.put(b"1", "j", Reply("VERDICT: A"))
        cache._connection.execute("PRAGMA max_page_count = 3")  # as if the disk were full
        with pytest.raises(AfzalError, match="cannot be kept") as raised:
            cache.put(b"2", "j", Reply("x" * 100_000))
        assert "full" in str(raised.value)
        assert cache.get(b"1") == Reply("VERDICT: A")


def test_the_key_of_a_request_is_its_content():
    one = {"messages": [{"role": "user", "content": "a"}], "sampling": {"temperature": 0}, "sample": 0}
    assert key_of(one) == key_of(json.loads(json.dumps(one)))
    assert key_of(one) != key_of({**one, "sample": 1})


def _work(path: str, log: str, stop_after: int) -> None:
    def ask(messages, sampling):
        with Path(log).open("a") as file:
            file.write(messages[-1]["content"] + "\n")
        if stop_after and len(Path(log).read_text().splitlines()) > stop_after:
            os.kill(os.getpid(), signal.SIGKILL)
        return fair(messages, sampling)

    with Cache(Path(path)) as cache:
        prompting.play_games(games_of(pairs(30), "both"), asking(), ask, cache, name="j", concurrency=2)


def test_a_killed_run_loses_no_reply(tmp_path):
    """Killed three times during sixty games: no received reply is asked for again."""
    context, path, log = multiprocessing.get_context("fork"), str(tmp_path / "c.sqlite"), str(tmp_path / "log")
    for stop_after in (9, 25, 44, 0):
        process = context.Process(target=_work, args=(path, log, stop_after))
        process.start()
        process.join()
        assert process.exitcode == (-signal.SIGKILL if stop_after else 0)
    calls = Counter(Path(log).read_text().splitlines())
    assert len(calls) == 60
    # at most the two requests in flight at each kill were asked twice
    assert sum(n - 1 for n in calls.values()) <= 6


def test_an_answer_in_several_pairs_is_scored_once():
    item = Item("a", "q", tuple(Response(text) for text in ("x", "xxx", "xx")))
    seen = []

    def score(pairs, answers):
        seen.extend(answers)
        return list(map(len, answers))

    rulings = pointwise.by_score(score)(games_of(pairs_of([item]), "first"))
    assert seen == ["x", "xxx", "xx"]
    assert [r.outcome for r in rulings] == ["second", "second", "first"]


def test_an_interrupt_sends_nothing_more_and_waits_for_nothing(tmp_path):
    calls, together, hanging = [], threading.Barrier(2), threading.Event()

    def hangs(messages, sampling):
        calls.append("asked")
        if together.wait(300) == 0:  # both are asked, and the main thread waits for them
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        hanging.wait(300)
        calls.append("answered")
        return fair(messages, sampling)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if the tests run in the background
    try:
        with Cache(tmp_path / "replies.sqlite") as cache, pytest.raises(KeyboardInterrupt):
            prompting.play_games(games_of(pairs(50), "both"), asking(), hangs, cache, name="j", concurrency=2)
        assert calls == ["asked", "asked"]
    finally:
        hanging.set()
        signal.signal(signal.SIGINT, before)
