"""Two processes with the same output: the second is refused, and a lock whose process was killed is taken over."""

from __future__ import annotations

import json
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from helpers_replies import send_reply
from helpers_runs import finished, start_command

from afzal.cli import main

PATIENCE = 300  # seconds, only so that a hanging test ends


class Holding(ThreadingHTTPServer):
    """A server that answers nothing until ``go`` is set; ``asked`` is set once there is a request."""

    def __init__(self) -> None:
        self.asked, self.go = threading.Event(), threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: Holding

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.asked.set()
        self.server.go.wait(PATIENCE)
        send_reply(self, "VERDICT: A", usage={"prompt_tokens": 5})

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server():
    running = Holding()
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.go.set()
    running.shutdown()
    running.server_close()


def generating(tmp_path: Path, url: str) -> list[str]:
    (tmp_path / "server.yaml").write_text(json.dumps({"kind": "openai", "url": url, "model": "m"}))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    return ["generate", "--model", f"{tmp_path}/server.yaml", "--prompts", f"{tmp_path}/prompts.jsonl"]


def judging(tmp_path: Path, url: str) -> list[str]:
    judge = {"kind": "http", "url": url, "model": "m", "prompt": "{{ prompt }}|{{ first }}|{{ second }}"}
    (tmp_path / "judge.yaml").write_text(json.dumps(judge))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "chosen": "x", "rejected": "y"}\n')
    return ["judge", f"{tmp_path}/rows.jsonl", "--judge", f"{tmp_path}/judge.yaml", "--resamples", "20"]


def revising(tmp_path: Path, url: str) -> list[str]:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "principles.yaml").write_text(json.dumps({"principles": [{"id": "kind", "text": "Be kind."}]}))
    flags = {"--model": "m", "--url": url, "--prompts": f"{tmp_path}/prompts.jsonl"}
    return ["revise", *(part for flag in flags.items() for part in flag), "--principles", f"{tmp_path}/principles.yaml"]


@pytest.mark.parametrize(
    ("line_of", "lock"),
    [(generating, "out.lock"), (judging, "out/run.lock"), (revising, "out/run.lock")],
)
def test_a_second_process_is_refused_and_a_killed_one_gives_way(
    tmp_path: Path, server: Holding, capsys: pytest.CaptureFixture[str], line_of: Any, lock: str
):
    url = f"http://127.0.0.1:{server.server_port}/v1"
    line = [*line_of(tmp_path, url), "--out", f"{tmp_path}/out"]
    first = start_command(line)
    while first.is_alive() and not server.asked.wait(0.1):
        pass
    assert server.asked.is_set(), "the first process ended without a request"

    assert main(line) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path}/out is being written by another process" in said
    assert f"process {first.pid} on " in said
    assert "try: wait for it, or stop it and repeat the command; or choose another --out" in said

    first.kill()
    assert finished(first) == -signal.SIGKILL
    assert (tmp_path / lock).exists()
    server.go.set()
    assert main(line) in (0, 1)  # 1: the answers hold no pair
    assert (tmp_path / "out").exists()
    assert not (tmp_path / lock).exists()
