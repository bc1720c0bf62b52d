"""The page's folder: the questions, who may answer, and every answer. The same command creates and reopens it.

``items.jsonl`` holds the rows, ``votes.jsonl`` one line per action, ``page.json`` the rules and the secret tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from afzal import data
from afzal._version import __version__
from afzal.data.annotation_folder import ITEMS, VOTES
from afzal.data.native import to_row
from afzal.data.remap import renumbered_votes
from afzal.errors import AfzalError
from afzal.records import Item, preferences, turns_to_json
from afzal.runs import atomic_write, claim_folder, lock, read_json, writing
from afzal.web.annotation import AnnotationSession, AnnotationTask
from afzal.web.display import Display, TextKind
from afzal.web.journal import Journal
from afzal.web.media import FOLDER, MediaLibrary
from afzal.web.questions import Mode, content_sha256, default_mode, questions_on, with_unique_ids
from afzal.web.queue import Rules

PAGE = "page.json"
FORMAT = 1
QUESTIONS: Mapping[Mode, str] = {
    "pair": "Which response is better?",
    "rank": "Rank the responses, best first.",
    "rate": "How good is each response?",
}


@dataclass(frozen=True, slots=True)
class AnnotationJob:
    """Arguments of ``afzal annotate``, as plain values.

    Attributes:
        mode: None chooses by the number of responses.
        scale: the best rating; the worst is 1.
        axes: name to question; empty for one axis without a name.
        annotators: names in order; for an empty name, the person enters it on the page.
    """

    source: str
    out: Path
    mode: Mode | None = None
    rules: Rules = field(default_factory=Rules)
    axes: Mapping[str, str] = field(default_factory=dict)
    gold: str | None = None
    guideline: str = ""
    title: str = ""
    scale: int = 5
    text: TextKind = "plain"
    annotators: tuple[str, ...] = ("",)
    columns: Mapping[str, str] | None = None
    data_format: str | None = None
    on_error: Literal["raise", "drop"] = "raise"


def read_items(job: AnnotationJob) -> tuple[list[Item], dict[str, int]]:
    """The rows of the job without votes, and the number of skipped rows by reason.

    A gold row whose prompt and responses are in the file marks that row, whatever the order of its responses. Other
    gold rows come last.

    Raises:
        AfzalError: a file cannot be read.
    """
    dataset = data.read(job.source, columns=job.columns, format=job.data_format, on_error=job.on_error)
    items = [replace(item, votes=()) if item.votes else item for item in dataset.items]
    if job.gold is None:
        return with_unique_ids(items), dataset.drop_counts
    known, left_out = _known(job.gold)
    truths, repeats = _by_content(known)
    if repeats:
        left_out = {**left_out, f"repeated rows of {Path(job.gold).name}": repeats}
    marked = []
    for item in items:
        truth = truths.pop(_content(item), None)
        marked.append(item if truth is None else _with_gold(item, truth))
    marked += [replace(item, gold=item.gold or item.votes, votes=()) for item in truths.values()]
    return with_unique_ids(marked), {**dataset.drop_counts, **left_out}


def _known(path: str) -> tuple[list[Item], dict[str, int]]:
    """The gold rows, and the number of votes that are verdicts of judges, which are not known truth.

    Raises:
        AfzalError: the file cannot be read, or holds nothing but such verdicts.
    """
    trusted = data.without_verdicts(data.read(path).items)
    if not trusted.verdicts:
        return trusted.items, {}
    known = [item for item in trusted.items if item.gold or item.votes]
    if not known:
        raise AfzalError(
            f"{Path(path).name} holds no known truth",
            where="--gold",
            why=f"it holds {trusted.in_words}",
            remedy="name a file in which people or the field gold say which answer is better",
        )
    return known, {f"verdicts of {', '.join(trusted.judges)} in {Path(path).name}": trusted.verdicts}


def _by_content(known: Sequence[Item]) -> tuple[dict[str, Item], int]:
    """The gold rows by their content, and the number of rows that say the same as an earlier one.

    Raises:
        AfzalError: two rows disagree on the same responses.
    """
    truths: dict[str, Item] = {}
    for item in known:
        first = truths.setdefault(_content(item), item)
        if _truth_of(first) != _truth_of(item):
            raise AfzalError(
                f"{first.where} and {item.where} state different truths about the same responses",
                where="--gold",
                remedy="keep the row that is right",
            )
    return truths, len(known) - len(truths)


def _truth_of(item: Item) -> set[tuple[str, str, float]]:
    """Every pair's better response, its worse one, and how certain that is."""
    texts = [json.dumps(turns_to_json(r.turns)) for r in item.responses]
    stated = preferences(replace(item, votes=item.gold or item.votes))
    return {(texts[q.i], texts[q.j], q.p) for q in stated}


def _content(item: Item) -> str:
    """Prompt and responses as one text, the same for every order of the responses."""
    answers = sorted(json.dumps(turns_to_json(r.turns)) for r in item.responses)
    return json.dumps([turns_to_json(item.prompt), answers])


def _with_gold(item: Item, truth: Item) -> Item:
    places = {json.dumps(turns_to_json(r.turns)): k for k, r in enumerate(item.responses)}
    new_index = [places[json.dumps(turns_to_json(r.turns))] for r in truth.responses]
    gold = tuple(renumbered_votes(truth.gold or truth.votes, new_index))
    return replace(item, gold=gold, extra={**truth.extra, **item.extra})


def task_of(job: AnnotationJob, items: Sequence[Item]) -> AnnotationTask:
    """The questions on these rows.

    Raises:
        AfzalError: a row does not suit the mode.
    """
    mode = job.mode or default_mode(items)
    if job.rules.order == "ask" and mode != "pair":
        raise AfzalError(
            "questions can be chosen only among pairs",
            where="--order ask",
            why=f"this page has mode {mode}",
            remedy="--mode pair, or --order random",
        )
    if job.rules.practice and mode != "pair":
        raise AfzalError(f"practice questions are pairs, but these rows have mode {mode}", where="--practice")
    axes: dict[str | None, str] = {**job.axes} or {None: QUESTIONS[mode]}
    hashes = [content_sha256(item) for item in items]
    questions = questions_on(items, hashes, mode, axes)
    title = job.title or Path(job.source).name.partition(".")[0]
    display = Display(job.text)
    return AnnotationTask(title, mode, items, hashes, questions, axes, job.rules, display, job.guideline, job.scale)


class AnnotationFolder:
    """An open folder: the session, the journal and the tokens. One process at a time.

    ``drops`` counts the skipped rows, ``port`` is the last port that the page was served at, or 0.

    Raises:
        AfzalError: another process has the folder; it holds something else; the rows or the rules differ from those it
            was created with; it cannot be written.
    """

    def __init__(self, job: AnnotationJob, clock: Callable[[], float]) -> None:
        self.path, self._clock = Path(job.out), clock
        items, self.drops = read_items(job)
        self.task, self.library = task_of(job, items), MediaLibrary(items)
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        claim_folder(self.path, "served", "stop it, or choose another --out")
        try:
            facts, self.port = _facts(self.task), 0
            self.tokens = self._resume(facts) if (self.path / PAGE).exists() else self._create()
            self._add_annotators(job.annotators)
            self._facts = facts
            self._save()
            self.journal = Journal(self.path / VOTES)
            self.reopen()
        except BaseException:
            lock.release(self.path)
            raise

    def reopen(self) -> None:
        """Rebuild the session from the journal on disk and forget everything else."""
        names = [name for name in self.tokens.values() if name]
        try:
            self.session = AnnotationSession(self.task, names, self.journal.lines(), self._clock)
        except KeyError as error:
            raise AfzalError(
                f"{self.path / VOTES} has a line that is not an answer to a question of this page",
                why=f"it lacks or misnames {error}",
                remedy="restore the file, or choose another --out",
            ) from None

    def name_of(self, token: str) -> str | None:
        """The name that belongs to a token, empty if the person has not entered one; None for a wrong token."""
        sent = token.encode()  # compare_digest takes non-ASCII text only as bytes
        return next((n for known, n in self.tokens.items() if secrets.compare_digest(known.encode(), sent)), None)

    def sign_in(self, token: str, name: str) -> bool:
        """Give the token's person a name; False if it is taken."""
        if name.casefold() in {taken.casefold() for taken in self.tokens.values()}:
            return False
        self.tokens[token] = name
        self._save()
        self.session.join(name)
        return True

    def remember_port(self, port: int) -> None:
        """Remember the port, so that an open browser page finds the resumed server."""
        if port != self.port:
            self.port = port
            self._save()

    def close(self) -> None:
        """Let others open the folder."""
        self.journal.close()
        lock.release(self.path)

    def _create(self) -> dict[str, str]:
        own_files = (lock.NAME, ITEMS, FOLDER)  # the last two: of a page that was killed while it started
        other_files = sorted(
            p.name for p in self.path.iterdir() if p.name not in own_files and not p.name.startswith(".")
        )
        if other_files:
            raise AfzalError(
                f"{self.path} is not empty and holds no page",
                why=f"it holds {', '.join(other_files[:3])}",
                remedy="choose another --out",
            )
        self.library.copy_to(self.path)
        items = map(self.library.with_copies, self.task.items)
        rows = (_encode(to_row(item)) for item in items)
        atomic_write(self.path / ITEMS, "".join(f"{row}\n" for row in rows).encode("utf-8", "surrogatepass"))
        return {}

    def _resume(self, facts: Mapping[str, Any]) -> dict[str, str]:
        self.library.copy_to(self.path)
        stored = read_json(self.path / PAGE)
        for key, value in facts.items():
            if stored.get(key) != value:
                raise _mismatch(self.path, key, stored.get(key), value)
        self.port = stored.get("port", 0)
        return {entry["token"]: entry["name"] for entry in stored["annotators"]}

    def _add_annotators(self, names: Iterable[str]) -> None:
        """Add the named annotators that are missing, and unnamed ones up to the number wanted."""
        names = list(names)
        for name in names:
            if name and name not in self.tokens.values():
                self.tokens[secrets.token_urlsafe(18)] = name
        for _ in range(len(names) - len(self.tokens)):
            self.tokens[secrets.token_urlsafe(18)] = ""

    def _save(self) -> None:
        people = [{"name": name, "token": token} for token, name in self.tokens.items()]
        body = {"afzal": __version__, **self._facts, "port": self.port, "annotators": people}
        atomic_write(self.path / PAGE, json.dumps(body, indent=1, ensure_ascii=False) + "\n")
        os.chmod(self.path / PAGE, 0o600)


# built once: json.dumps builds an encoder for every call that has options
_encode = json.JSONEncoder(ensure_ascii=False, default=str).encode


def _facts(task: AnnotationTask) -> dict[str, Any]:
    """Facts that must not change when the page is reopened."""
    axes = [[name, question] for name, question in task.axes.items()]
    sha = hashlib.sha256("\n".join(task.hashes).encode()).hexdigest()
    rules = {f"rules.{key}": value for key, value in asdict(task.rules).items()}
    page_facts = {"format": FORMAT, "mode": task.mode, "scale": task.scale, "text": task.display.text, "axes": axes}
    return {**page_facts, **rules, "items": len(task.items), "items_sha256": sha}


def _mismatch(path: Path, key: str, stored: Any, value: Any) -> AfzalError:
    if key in ("items", "items_sha256"):
        what = "these are not the rows that this page was started with"
        why = f"{stored} rows then, {value} now" if key == "items" else "a prompt or a response has changed"
        return AfzalError(what, where=str(path), why=why, remedy="restore the file, or choose another --out")
    name = key.removeprefix("rules.")
    what = f"this page was started with {name} {stored!r}, not {value!r}"
    return AfzalError(what, where=str(path), remedy="use the same setting, or choose another --out")
