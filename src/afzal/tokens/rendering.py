"""Render chat templates in a separate process with limited memory and CPU time.

One process serves all renderings of a program: it starts with the first one, in about 0.1 s, and ends with the program.
Jobs are sent in batches, so a rendering costs little more than in this process (docs/tokens.md has figures).
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

from afzal.errors import AfzalError
from afzal.tokens.render_child import SECONDS

_CHARACTERS_PER_REQUEST = 2_000_000
_DATE = [datetime.now()]  # the same date for all renderings of a program, so that no prompt changes at midnight
_REMEDY = "give another template with chat_template=FILE.jinja, or a built-in one: chat_template=chatml"


@dataclass(frozen=True, slots=True)
class Refusal:
    """The template raised an error for this conversation; ``words`` is its message."""

    words: str


def date() -> datetime:
    """The date that templates see now."""
    return _DATE[0]


def set_date(date: datetime) -> None:
    """Set the date that templates see from now on (``strftime_now``); initially it is the program's start."""
    _DATE[0] = date


def render(template: str, jobs: Sequence[Mapping[str, Any]]) -> list[str | Refusal]:
    """Render each job with a template.

    Args:
        jobs: the template's variables as plain data: ``messages``, ``add_generation_prompt``, ``tools`` ...

    Raises:
        AfzalError: the template does not compile, or it exceeds the limits.
    """
    texts: list[str | Refusal] = []
    for part in _parts([_sized(job) for job in jobs]):
        texts += [_text(answer) for answer in _ask(template, part)]
    return texts


def check(template: str, where: str) -> None:
    """Refuse a template that does not compile.

    Raises:
        AfzalError: names the line.
    """
    answer = _ask(template, [])[0]
    if "fault" in answer:
        raise AfzalError(
            f"the chat template does not parse: {answer['fault']}",
            where=f"{where}:{answer['line']}",
            remedy="correct that line of the template, or give another with chat_template",
        )


def _sized(job: Mapping[str, Any]) -> str:
    """A job as JSON with its length, which determines its time limit."""
    text = json.dumps(job, default=lambda value: f"<{type(value).__name__}>")
    return f'{{"characters": {len(text)}, {text[1:]}'


def _parts(jobs: Sequence[str]) -> Iterator[list[str]]:
    part: list[str] = []
    size = 0
    for job in jobs:
        if part and size + len(job) > _CHARACTERS_PER_REQUEST:
            yield part
            part, size = [], 0
        part.append(job)
        size += len(job)
    if part:
        yield part


def _text(answer: Mapping[str, str]) -> str | Refusal:
    if "text" in answer:
        return answer["text"]
    if "refused" in answer:
        return Refusal(answer["refused"])
    if "fault" in answer:
        raise AfzalError("the chat template does not parse", why=answer["fault"], remedy=_REMEDY)
    raise _limit_error(answer["limit"])


def _limit_error(why: str) -> AfzalError:
    return AfzalError("the chat template exceeds its limits", why=why, remedy=_REMEDY)


def _ask(template: str, jobs: Sequence[str]) -> list[dict[str, str]]:
    """One answer per job, or a single answer if there are no jobs."""
    head = json.dumps({"template": template, "now": _DATE[0].isoformat()})
    request = f'{head[:-1]}, "jobs": [{", ".join(jobs)}]}}\n'.encode()
    with _LOCK:
        child = _child()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(request)
            child.stdin.flush()
            lines = [child.stdout.readline() for _ in range(max(1, len(jobs)))]
        except BrokenPipeError:
            lines = [b""]
        except BaseException:  # interrupted in the middle: the child's next answer would belong to this request
            _end(child)
            raise
        if all(line.endswith(b"\n") for line in lines):
            return [json.loads(line.decode("utf-8", "surrogatepass")) for line in lines]
        _end(child)
    raise _limit_error(
        f"it takes more than {SECONDS:g} s of processor time for one conversation, or more memory than allowed"
    )


_LOCK = Lock()
_CHILDREN: dict[int, subprocess.Popen[bytes]] = {}  # by parent process id: a fork starts its own child


def _child() -> subprocess.Popen[bytes]:
    child = _CHILDREN.get(os.getpid())
    if child is None or child.poll() is not None:
        child = _CHILDREN[os.getpid()] = _started()
    return child


def _started() -> subprocess.Popen[bytes]:
    """Start the process: only the standard library and Jinja2, in a separate session so that Ctrl-C does not reach
    it."""
    script = Path(__file__).with_name("render_child.py")
    places = [spec.origin for spec in map(find_spec, ("jinja2", "markupsafe")) if spec is not None]
    folders = {str(Path(place).parents[1]) for place in places if place is not None}
    child = subprocess.Popen(
        [sys.executable, "-S", "-E", "-s", str(script), *sorted(folders)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=script.parent,
        start_new_session=True,
    )
    atexit.register(_end, child)
    return child


def _end(child: subprocess.Popen[bytes]) -> None:
    for pipe in (child.stdin, child.stdout):
        with suppress(OSError):
            if pipe is not None:
                pipe.close()
    with suppress(OSError):
        child.kill()
        child.wait()
