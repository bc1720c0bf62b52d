"""A run killed while judging resumes: it asks only the missing questions and ends with the same bytes."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers_replies import send_reply
from helpers_runs import finished, start_command

from afzal import data
from afzal.records import Item, Response

CONCURRENCY = 4


class Fair(ThreadingHTTPServer):
    """A judge behind HTTP that prefers the answer with the larger number, and counts its requests."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: Fair

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = body["messages"][-1]["content"]
        with self.server.lock:
            self.server.asked.append(text)
        _, first, second = text.split("|")
        said = f"VERDICT: {'A' if int(first) > int(second) else 'B'}"
        send_reply(self, said, usage={"prompt_tokens": 5})

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server():
    running = Fair()
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


def files(out: Path) -> dict[str, bytes]:
    """A run's files except its cache, whose pages depend on the order of replies."""
    return {p.name: p.read_bytes() for p in sorted(out.iterdir()) if not p.name.startswith("replies.")}


def kept(out: Path) -> int:
    path = out / "replies.sqlite"
    if not path.exists():
        return 0
    with sqlite3.connect(path) as connection:
        return connection.execute("SELECT COUNT(*) FROM reply").fetchone()[0]


def killed_run(tmp_path: Path, server: Fair, pairs: int, kills: int) -> None:
    games = 2 * pairs
    items = [Item(str(k), f"q{k}", (Response(str(2 * k)), Response(str(2 * k + 1)))) for k in range(pairs)]
    data.write(items, tmp_path / "rows.jsonl", "afzal")
    address = f"http://127.0.0.1:{server.server_port}/v1"
    judge = {"kind": "http", "url": address, "model": "fair", "prompt": "{{ prompt }}|{{ first }}|{{ second }}"}
    (tmp_path / "judge.yaml").write_text(json.dumps(judge | {"concurrency": CONCURRENCY}))
    line = ["judge", f"{tmp_path}/rows.jsonl", "--judge", f"{tmp_path}/judge.yaml", "--resamples", "20", "--out"]
    assert finished(start_command([*line, f"{tmp_path}/whole"])) == 0
    assert len(server.asked) == games
    server.asked.clear()
    out, landed = tmp_path / "killed", 0
    for kill in range(1, kills + 1):
        process = start_command([*line, str(out)])
        until = kill * games // (kills + 1)
        while process.is_alive() and len(set(server.asked)) < until:
            time.sleep(0.001)
        landed += process.is_alive()
        process.kill()
        process.join()
        before = kept(out)
        assert before >= len(set(server.asked)) - CONCURRENCY  # at most the replies in flight are lost
    assert landed == kills
    calls = len(server.asked)
    assert calls <= games + kills * CONCURRENCY
    left = games - kept(out)
    assert finished(start_command([*line, str(out)])) == 0
    assert len(server.asked) - calls == left
    assert files(out) == files(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_run_resumes(tmp_path, server):
    killed_run(tmp_path, server, pairs=30, kills=3)


@pytest.mark.slow
def test_a_run_killed_twenty_times_in_500_judgements_resumes(tmp_path, server):
    killed_run(tmp_path, server, pairs=250, kills=20)
