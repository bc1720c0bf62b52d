"""Three simulated annotators, who vote through the annotation page's API over loopback."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from afzal import data
from afzal.web.client import Client
from afzal.web.folder import AnnotationFolder, AnnotationJob
from afzal.web.queue import Rules
from afzal.web.serve import ServerOptions, addresses, allowed_hosts, bind_socket

NAMES, TURNED = ("anvar", "barno", "chori"), "chori"
NOISE = 0.15
_BEGAN, _SECONDS = 1_700_000_000.0, 4.0


def vote(source: Path, gold: Path | None, folder: Path, out: Path, worth: Mapping[tuple[str, str], float]) -> None:
    """Let every annotator answer every question of ``source``, and write the rows with their votes to ``out``.

    A simulated clock moves with the votes, and a fixed seed decides who votes next, so the output is reproducible byte
    for byte.

    Args:
        gold: rows with known answers, hidden among the others; None for none.
        worth: value of each (prompt, response); a perfect annotator prefers the higher one.
    """
    now = [_BEGAN]
    job = AnnotationJob(
        str(source), folder, rules=Rules(overlap=len(NAMES)), gold=gold and str(gold), annotators=NAMES, title="stories"
    )
    with served(job, lambda: now[0]) as told:
        people = {name: Client(address) for name, address in told}
        questions = {name: person.next() for name, person in people.items()}
        rng, count = random.Random(0), 0
        while waiting := [name for name in NAMES if questions[name]["state"] == "ask"]:
            name = rng.choice(waiting)
            now[0], count = now[0] + _SECONDS, count + 1
            answer = outcome(name, questions[name], worth)
            replied = people[name].vote(
                questions[name], outcome=answer, strength=1, seconds=_SECONDS, id=f"vote-{count:06}"
            )
            questions[name] = replied["next"]
        for person in people.values():
            person.close()
    rows = [replace(item, where="") for item in data.read(folder).items if item.votes]
    data.write(rows, out, "afzal")


def outcome(name: str, question: Mapping[str, Any], worth: Mapping[tuple[str, str], float]) -> str:
    """The vote, ``first`` or ``second``: the truth, wrong with probability ``NOISE``, reversed for one annotator."""
    prompt = question["prompt"][0]["parts"][0]["text"]
    first, second = (turns[0]["parts"][0]["text"] for turns in question["responses"])
    digest = hashlib.sha256("\n".join((name, prompt)).encode()).digest()
    slip = int.from_bytes(digest[:8], "big") / 2**64 < NOISE
    is_first = worth[prompt, first] > worth[prompt, second]
    return "first" if is_first ^ slip ^ (name == TURNED) else "second"


@contextmanager
def served(job: AnnotationJob, clock: Callable[[], float]) -> Iterator[list[tuple[str, str]]]:
    """Serve the page as ``afzal annotate`` does, in a thread and by ``clock``; yields names and addresses."""
    import uvicorn

    from afzal.web.app import application
    from afzal.web.security import Guard

    folder, place = AnnotationFolder(job, clock), ServerOptions()
    try:
        with bind_socket(place) as sock:
            port = sock.getsockname()[1]
            guard = Guard(application(folder, lambda: None), allowed_hosts(place, port))
            # Annotators who wait for their turn keep their connection.
            settings = uvicorn.Config(
                guard, log_level="error", access_log=False, lifespan="off", timeout_keep_alive=600
            )
            server = uvicorn.Server(settings)
            sock.listen(8)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
            thread.start()
            try:
                yield addresses(folder, place.host, port)
            finally:
                server.should_exit = True
                thread.join()
    finally:
        folder.close()
