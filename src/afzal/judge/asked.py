"""Judges that are asked in words: the request of a game, and the ruling that a reply makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from afzal.data.turns import full_text
from afzal.errors import AfzalError
from afzal.judge import replies
from afzal.judge.games import Game, Ruling, as_shown
from afzal.judge.parts import content, keyed
from afzal.judge.replies import Reading
from afzal.judge.verdicts import Outcome
from afzal.records import Turns
from afzal.servers.cache import Cache, Reply, key_of
from afzal.servers.requests import Ask, Request, answered


@dataclass(frozen=True, slots=True)
class Asking:
    """How a judge is asked, and the one way in which its reply is read.

    Attributes:
        prompt: Jinja with ``prompt``, ``first`` and ``second``; with ``prompt`` and ``answer`` where each is scored
            alone.
        read: a reply to a reading.
        alone: whether each answer is scored alone.
        larger: whether the larger score is better.
        about: what else decides a reply, such as the model's name; part of the key in the cache.
        seed: of sampled replies.
    """

    system: str
    prompt: str
    read: Callable[[Reply], Reading]
    alone: bool = False
    larger: bool = True
    temperature: float = 0.0
    max_tokens: int = 512
    seed: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)


def by_choices(choices: Mapping[str, Outcome]) -> Callable[[Reply], Reading]:
    """Replies whose last line is ``VERDICT: word``."""
    return lambda reply: replies.by_choice(reply.text, choices, reply.finish)


def by_json(path: str, values: Mapping[str, Outcome]) -> Callable[[Reply], Reading]:
    """Replies that are one JSON object."""
    return lambda reply: replies.by_json(reply.text, path, values, reply.finish)


def by_pattern(pattern: str) -> Callable[[Reply], Reading]:
    """Replies whose last line holds a score."""
    return lambda reply: replies.by_score(reply.text, pattern, reply.finish)


class Words:
    """The texts of a judge's requests.

    The template sees the prompt and the answers as values, so that braces inside them are plain text; it runs in
    Jinja's sandbox.

    Raises:
        AfzalError: the template does not parse, or fails.
    """

    def __init__(self, asking: Asking) -> None:
        from jinja2 import StrictUndefined
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self.asking = asking
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
        self._template = self._guarded(lambda: environment.from_string(asking.prompt))

    def messages(self, **values: Turns) -> tuple[Mapping[str, Any], ...]:
        """The messages of one request, with the images and sounds of the values in their places."""
        system = ({"role": "system", "content": self.asking.system},) if self.asking.system else ()
        return (*system, {"role": "user", "content": content(self._render, values)})

    def _render(self, **values: str) -> str:
        return self._guarded(lambda: self._template.render(**values))

    def requests(self, game: Game) -> list[Request]:
        """One request for a game; two where each answer is scored alone."""
        prompt, first, second = game.turns
        if self.asking.alone:
            answers = (second, first) if game.turned else (first, second)
            asked = [{"prompt": prompt, "answer": answer} for answer in answers]
        else:
            asked = [{"prompt": prompt, "first": first, "second": second, "transcript": game.transcript}]
        return [self.request(game.sample, **values) for values in asked]

    def request(self, sample: int, **values: Turns) -> Request:
        """One request, for the reply of that number."""
        sampling: dict[str, Any] = {"temperature": self.asking.temperature, "max_tokens": self.asking.max_tokens}
        if self.asking.temperature > 0:
            sampling["seed"] = self.asking.seed + sample
        messages = self.messages(**values)
        whole = {**self.asking.about, "messages": keyed(messages), "sampling": sampling, "sample": sample}
        return Request(messages, sampling, key_of(whole))

    def _guarded(self, work: Callable[[], Any]) -> Any:
        from jinja2 import TemplateError

        try:
            return work()
        except (TemplateError, TypeError, ValueError, RecursionError, MemoryError) as error:
            raise AfzalError(
                f"the judge's prompt does not render: {error}",
                where="prompt",
                remedy="it is Jinja, with prompt, first and second (prompt and answer where each is scored alone)",
            ) from None


def ruling(game: Game, asking: Asking, given: Sequence[Reply]) -> Ruling:
    """What the replies of a game say, in the numbering of its pair."""
    tokens = sum(r.tokens_in for r in given), sum(r.tokens_out for r in given)
    readings = [asking.read(reply) for reply in given]
    why, unread = next(((r.why, g.text) for r, g in zip(readings, given, strict=True) if r.why), ("", ""))
    if why:
        return Ruling("none", why=why, tokens=tokens, unread=unread)
    if not asking.alone:
        return Ruling(as_shown(game, readings[0].outcome)[0], tokens=tokens)
    one, two = (r.score for r in readings)
    assert one is not None
    assert two is not None
    gap = one - two if asking.larger else two - one
    return Ruling("first" if gap > 0 else "second" if gap < 0 else "tie", tokens=tokens)


def scores(
    rows: Sequence[tuple[Turns, str]],
    asking: Asking,
    ask: Ask,
    cache: Cache,
    *,
    name: str,
    samples: int = 1,
    concurrency: int = 4,
) -> list[float]:
    """What each ``(prompt, answer)`` is worth to a judge that scores each answer alone; larger is better.

    It is the mean over the replies that can be read, of ``samples`` to each question.

    Raises:
        AfzalError: as for :func:`played`, or no reply to a question can be read: no number stands for that.
    """
    words = Words(asking)
    requests = [[words.request(k, prompt=p, answer=a) for k in range(samples)] for p, a in rows]
    known = answered([r for of in requests for r in of], ask, cache, name=name, concurrency=concurrency)
    found = []
    for (prompt, answer), of in zip(rows, requests, strict=True):
        readings = [asking.read(known[r.key]) for r in of]
        read = [r.score for r in readings if r.score is not None]
        if not read:
            raise AfzalError(
                f"{name} gives no score for an answer",
                where=f"prompt {full_text(prompt)[:80]!r}, answer {answer[:80]!r}",
                why=readings[0].why,
                remedy="a prompt that asks for the score on the last line, more max_tokens, or samples: 3 with a "
                "temperature, of which the readable ones count",
            )
        found.append(sum(read) / len(read) * (1 if asking.larger else -1))
    return found


def played(
    games: Sequence[Game],
    asking: Asking,
    ask: Ask,
    cache: Cache,
    *,
    name: str,
    concurrency: int = 4,
    heard: Callable[[int], None] = lambda n: None,
) -> list[Ruling]:
    """Rulings on all games; only what the cache does not hold is asked, ``concurrency`` requests at once.

    Args:
        heard: called with the number of replies, each time one arrives.

    Raises:
        AfzalError: a request failed for good. Replies that came before it are in the cache.
    """
    words = Words(asking)
    requests = [words.requests(game) for game in games]
    known = answered(
        [r for asked in requests for r in asked], ask, cache, name=name, concurrency=concurrency, heard=heard
    )
    return [ruling(game, asking, [known[r.key] for r in asked]) for game, asked in zip(games, requests, strict=True)]
