"""Annotation pages without a network: rows on disk, an open folder with a manual clock, and a served one."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import afzal
from afzal.web.annotation import AnnotationSession
from afzal.web.client import Client, parse_addresses
from afzal.web.folder import AnnotationFolder, AnnotationJob
from afzal.web.queue import Rules

SOURCE = str(Path(afzal.__file__).parents[1])


class Clock:
    """Seconds since the epoch, advanced manually."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def pairs(n: int) -> list[dict[str, Any]]:
    """Rows whose better response is ``good k``."""
    return [{"prompt": f"prompt {k}", "chosen": f"good {k}", "rejected": f"bad {k}"} for k in range(n)]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def job(
    tmp_path: Path, rows: Sequence[dict[str, Any]], annotators: Sequence[str] = ("ann",), **given: Any
) -> AnnotationJob:
    source = tmp_path / "rows.jsonl"
    if not source.exists():
        write_rows(source, rows)
    about = {k: given.pop(k) for k in ("mode", "axes", "gold", "guideline", "text") if k in given}
    return AnnotationJob(str(source), tmp_path / "out", rules=Rules(**given), annotators=tuple(annotators), **about)


@contextmanager
def opened(made: AnnotationJob, clock: Clock | None = None) -> Iterator[AnnotationFolder]:
    folder = AnnotationFolder(made, clock or Clock())
    try:
        yield folder
    finally:
        folder.close()


_ids = iter(range(10**9))


def answer(
    session: AnnotationSession, name: str, folder: AnnotationFolder | None = None, **said: Any
) -> dict[str, Any]:
    """Answer the person's question, and return the journal line."""
    asked = session.next(name)
    assert asked["state"] == "ask", asked
    body = {"id": f"id{next(_ids):08d}", "question": asked["question"], "position": asked["position"]}
    step = session.vote(
        name, body | ({"outcome": "first"} | said if "groups" not in said and "values" not in said else said)
    )
    if folder is not None:
        folder.journal.append(step.lines)
    return step.lines[0]


@contextmanager
def served(*arguments: str, cwd: Path) -> Iterator[tuple[list[str], subprocess.Popen[str]]]:
    """``afzal annotate ... --headless`` in a separate process: the addresses, and the process, which is killed."""
    process = _headless("annotate", *arguments, cwd=cwd)
    try:
        assert process.stdout is not None
        addresses = [address for _, address in parse_addresses(iter(process.stdout.readline, ""))]
        if not addresses:
            raise AssertionError(process.communicate()[1])
        yield addresses, process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def page_of(verb: str, *arguments: str, cwd: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """``afzal VERB ... --headless`` for a page with one address, the first line of the process's output."""
    process = _headless(verb, *arguments, cwd=cwd)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address:
            raise AssertionError(process.communicate()[1])
        yield address, process
    finally:
        process.kill()
        process.communicate()


def _headless(verb: str, *arguments: str, cwd: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    command = [sys.executable, "-m", "afzal", verb, *arguments, "--headless"]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def first_text(question: dict[str, Any], place: int = 0) -> str:
    """The text of the response at a position on the screen."""
    return question["responses"][place][0]["parts"][0]["text"]


def vote_all(client: Client, choose: Any) -> int:
    """Answer until no question is left; return the number of answers."""
    asked, count = client.next(), 0
    while asked["state"] == "ask":
        asked, count = client.vote(asked, **choose(asked))["next"], count + 1
    return count


def lines_of(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "votes.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def raw(
    address: str, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """A request as a stranger would send it; ``_`` in a header name means ``-``."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        reply = connection.getresponse()
        return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()
    finally:
        connection.close()
