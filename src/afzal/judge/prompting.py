"""Prompted judges: from games to requests, and from replies to rulings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from afzal.data.turns import full_text
from afzal.errors import AfzalError
from afzal.judge import replies
from afzal.judge.games import Game, Ruling, in_pair_order
from afzal.judge.message_parts import content
from afzal.judge.replies import Reading
from afzal.judge.verdicts import Outcome
from afzal.records import Turns
from afzal.servers.cache import Cache, Reply, key_of
from afzal.servers.messages import cache_key_parts
from afzal.servers.requests import Ask, Request, fetch_replies


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """How a judge is prompted, and how its replies are parsed.

    Attributes:
        prompt: Jinja with ``prompt``, ``first`` and ``second``; with ``prompt`` and ``answer`` if each answer is scored
            alone.
        parse: reads a verdict or score from a reply.
        pointwise: whether each answer is scored alone.
        larger_is_better: for scores.
        cache_fields: whatever else determines a reply, such as the model's name; part of the cache key.
        seed: of sampled replies.
    """

    system: str
    prompt: str
    parse: Callable[[Reply], Reading]
    pointwise: bool = False
    larger_is_better: bool = True
    temperature: float = 0.0
    max_tokens: int = 512
    seed: int = 0
    cache_fields: Mapping[str, Any] = field(default_factory=dict)


def by_choices(choices: Mapping[str, Outcome]) -> Callable[[Reply], Reading]:
    """A reader of replies whose last line is ``VERDICT: word``."""
    return lambda reply: replies.by_choice(reply.text, choices, reply.finish)


def by_json(path: str, values: Mapping[str, Outcome]) -> Callable[[Reply], Reading]:
    """A reader of replies that are one JSON object."""
    return lambda reply: replies.by_json(reply.text, path, values, reply.finish)


def by_pattern(pattern: str) -> Callable[[Reply], Reading]:
    """A reader of replies whose last line holds a score."""
    return lambda reply: replies.by_score(reply.text, pattern, reply.finish)


class PromptBuilder:
    """Builds the texts of a judge's requests.

    The template receives prompt and answers as values, so braces in them stay plain text. It runs in Jinja's sandbox.

    Raises:
        AfzalError: the template does not parse, or fails.
    """

    def __init__(self, settings: PromptSettings) -> None:
        from jinja2 import StrictUndefined
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self.settings = settings
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
        self._template = self._guarded(lambda: environment.from_string(settings.prompt))

    def messages(self, **values: Turns) -> tuple[Mapping[str, Any], ...]:
        """The messages of one request, with the images and sounds of the values in their places."""
        system = ({"role": "system", "content": self.settings.system},) if self.settings.system else ()
        return (*system, {"role": "user", "content": content(self._render, values)})

    def _render(self, **values: str) -> str:
        return self._guarded(lambda: self._template.render(**values))

    def requests(self, game: Game) -> list[Request]:
        """The request for a game; two if each answer is scored alone."""
        prompt, first, second = game.turns
        if self.settings.pointwise:
            answers = (second, first) if game.swapped else (first, second)
            variables = [{"prompt": prompt, "answer": answer} for answer in answers]
        else:
            variables = [{"prompt": prompt, "first": first, "second": second, "transcript": game.transcript}]
        return [self.request(game.sample, **values) for values in variables]

    def request(self, sample: int, **values: Turns) -> Request:
        """One request for the given sample number."""
        sampling: dict[str, Any] = {"temperature": self.settings.temperature, "max_tokens": self.settings.max_tokens}
        if self.settings.temperature > 0:
            sampling["seed"] = self.settings.seed + sample
        messages = self.messages(**values)
        key_fields = {
            **self.settings.cache_fields,
            "messages": cache_key_parts(messages),
            "sampling": sampling,
            "sample": sample,
        }
        return Request(messages, sampling, key_of(key_fields))

    def _guarded(self, work: Callable[[], Any]) -> Any:
        from jinja2 import TemplateError

        try:
            return work()
        except (TemplateError, TypeError, ValueError, RecursionError, MemoryError) as error:
            raise AfzalError(
                f"the judge's prompt does not render: {error}",
                where="prompt",
                remedy="it is a Jinja template with prompt, first and second (prompt and answer for scores)",
            ) from None


def ruling(game: Game, settings: PromptSettings, game_replies: Sequence[Reply]) -> Ruling:
    """The ruling that follows from a game's replies, in the numbering of its pair."""
    tokens = sum(r.tokens_in for r in game_replies), sum(r.tokens_out for r in game_replies)
    readings = [settings.parse(reply) for reply in game_replies]
    why, unreadable = next(((r.why, g.text) for r, g in zip(readings, game_replies, strict=True) if r.why), ("", ""))
    if why:
        return Ruling("none", why=why, tokens=tokens, unreadable_reply=unreadable)
    if not settings.pointwise:
        return Ruling(in_pair_order(game, readings[0].outcome)[0], tokens=tokens)
    first, second = (r.score for r in readings)
    assert first is not None
    assert second is not None
    gap = first - second if settings.larger_is_better else second - first
    return Ruling("first" if gap > 0 else "second" if gap < 0 else "tie", tokens=tokens)


def scores(
    rows: Sequence[tuple[Turns, str]],
    settings: PromptSettings,
    ask: Ask,
    cache: Cache,
    *,
    name: str,
    samples: int = 1,
    concurrency: int = 4,
) -> list[float]:
    """The score of each ``(prompt, answer)`` by a judge that scores each answer alone; larger is better.

    It is the mean over the readable ones of ``samples`` replies to each question.

    Raises:
        AfzalError: as for :func:`play_games`, or no reply to a question can be read; no default score takes its place.
    """
    builder = PromptBuilder(settings)
    requests = [[builder.request(k, prompt=p, answer=a) for k in range(samples)] for p, a in rows]
    answers = fetch_replies(
        [r for sampled in requests for r in sampled], ask, cache, name=name, concurrency=concurrency
    )
    means = []
    for (prompt, answer), sampled in zip(rows, requests, strict=True):
        readings = [settings.parse(answers[r.key]) for r in sampled]
        readable = [r.score for r in readings if r.score is not None]
        if not readable:
            raise AfzalError(
                f"{name} gives no score for an answer",
                where=f"prompt {full_text(prompt)[:80]!r}, answer {answer[:80]!r}",
                why=readings[0].why,
                remedy="a prompt that asks for the score on the last line, more max_tokens, or samples: 3 with a "
                "temperature (readable replies count)",
            )
        means.append(sum(readable) / len(readable) * (1 if settings.larger_is_better else -1))
    return means


def play_games(
    games: Sequence[Game],
    settings: PromptSettings,
    ask: Ask,
    cache: Cache,
    *,
    name: str,
    concurrency: int = 4,
    on_reply: Callable[[int], None] = lambda n: None,
) -> list[Ruling]:
    """Rulings on all games; only requests missing from the cache are sent, ``concurrency`` at the same time.

    Args:
        on_reply: called with the number of replies so far, each time one arrives.

    Raises:
        AfzalError: a request failed for good. Earlier replies are in the cache.
    """
    builder = PromptBuilder(settings)
    requests = [builder.requests(game) for game in games]
    answers = fetch_replies(
        [r for game_requests in requests for r in game_requests],
        ask,
        cache,
        name=name,
        concurrency=concurrency,
        on_reply=on_reply,
    )
    return [
        ruling(game, settings, [answers[r.key] for r in game_requests])
        for game, game_requests in zip(games, requests, strict=True)
    ]
