"""Judges that hear arguments: the debate or criticism, the verdict on it, and the controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afzal.config.debating import ARGUE_PROMPT, ASSIST_PROMPT, DebaterConfig
from afzal.config.judging import JudgeConfig, prompt_after
from afzal.errors import AfzalError
from afzal.hashes import content_hash
from afzal.judge.debate import Position, Protocol, Speak, play_debates
from afzal.judge.games import Game, Judge, Ruling, in_pair_order
from afzal.judge.prompting import PromptBuilder, PromptSettings
from afzal.judge.verdicts import from_probability
from afzal.model.load import pick_device
from afzal.records import Item
from afzal.rewards.functions import own_function
from afzal.rewards.source import reward_source
from afzal.servers.cache import Cache, Reply, key_of
from afzal.servers.client import server_from
from afzal.servers.requests import Ask, Request, fetch_replies

if TYPE_CHECKING:
    from afzal.judge.replies import Reading

Decider = Callable[[JudgeConfig, Cache], Judge]
"""Makes the inner judge from its settings."""

_DECIDES = "function(prompt, first, second, transcript) returns the probability that the first answer is better"
_ARGUES = "function(prompt, own, other, side, transcript) returns a text"


def run_debates(
    settings: JudgeConfig,
    protocol: Protocol,
    items: Sequence[Item],
    games: Sequence[Game],
    cache: Path,
    decider: Decider,
    name: str,
) -> tuple[Sequence[Game], Sequence[Ruling]]:
    """The games with their arguments under a protocol, and the rulings of the inner judge.

    Args:
        settings: of kind debate or assisted.
        cache: file of all replies, including arguments.
        decider: makes the inner judge.
        name: the judge's name, as noted in the cache.

    Raises:
        AfzalError: a participant cannot be opened, or a server does not answer; earlier replies are in the cache.
    """
    assert settings.judge is not None
    speaker = settings.assistant if settings.kind == "assisted" else settings.debater
    assert speaker is not None
    with Cache(cache) as replies:
        shown = list(games)
        if protocol != "alone":
            prompt = ASSIST_PROMPT if protocol == "assisted" else ARGUE_PROMPT
            speak = open_debater(speaker, prompt, items, replies, name)
            speak = _swapped(speak) if speaker.swapped else speak
            shown = play_debates(games, protocol, speak, rounds=settings.rounds, seed=settings.seed)
        prompt = settings.judge.prompt if protocol == "alone" else prompt_after(settings)
        inside = settings.judge.model_copy(update={"prompt": prompt})
        if inside.kind == "function":
            return shown, _function_judge(inside.function or "")(shown)
        return shown, decider(inside, replies)(shown)


def _function_judge(spec: str) -> Judge:
    decide = own_function(spec, "judge.function", _DECIDES)

    def judge(games: Sequence[Game]) -> list[Ruling]:
        rulings = []
        for game in games:
            try:
                p = float(decide(game.pair.prompt, *game.shown, game.transcript))
            except Exception as error:
                raise AfzalError(
                    f"{spec} failed: {type(error).__name__}: {error}", where="judge.function", remedy=_DECIDES
                ) from error
            if not 0 <= p <= 1:
                raise AfzalError(
                    f"{spec} returned {p}, which is not a probability", where="judge.function", remedy=_DECIDES
                )
            rulings.append(Ruling(*in_pair_order(game, from_probability(p), p)))
        return rulings

    return judge


def _swapped(speak: Speak) -> Speak:
    """An adversary, which reads each answer in place of the other."""
    return lambda positions: speak([replace(p, own=p.other, other=p.own) for p in positions])


def open_debater(settings: DebaterConfig, prompt: str, items: Sequence[Item], cache: Cache, name: str) -> Speak:
    """The debaters. Each text is requested once and then read from the cache; a reward model's scores are recomputed.

    Args:
        prompt: used if the settings have none.
        items: the items whose answers are argued about.

    Raises:
        AfzalError: the model, the server's key or the function cannot be found.
    """
    if settings.kind == "function":
        return _function_debater(settings.function or "", cache, name)
    if settings.kind == "reward":
        return _reward_debater(settings.model or "", items)
    about: dict[str, Any] = {"kind": settings.kind, "model": settings.model, "url": settings.url, "argues": True}
    if settings.kind == "model":
        about["sha256"] = content_hash(settings.model or "")
    prompt_settings = PromptSettings(settings.system, settings.prompt or prompt, _unread)
    builder = PromptBuilder(prompt_settings)
    sampling: dict[str, Any] = {"temperature": settings.temperature, "max_tokens": settings.max_tokens}
    sampling |= {"seed": settings.seed} if settings.temperature > 0 else {}
    ask = _local_model(settings) if settings.kind == "model" else server_from(settings, "debater").ask

    def speak(positions: Sequence[Position]) -> list[str]:
        requests = []
        for position in positions:
            messages = builder.messages(**position.values())
            key = key_of({**about, "messages": list(messages), "sampling": sampling})
            requests.append(Request(messages, sampling, key))
        at_once = settings.concurrency if settings.kind == "http" else 1
        known = fetch_replies(requests, ask, cache, name=f"{name}: arguments", concurrency=at_once)
        return [_reply_text(known[request.key]) for request in requests]

    return speak


def _reply_text(reply: Reply) -> str:
    return reply.text.strip() + (" [cut]" if reply.finish == "length" else "")


def _unread(reply: Reply) -> Reading:
    raise NotImplementedError("an argument holds no verdict")


def _function_debater(spec: str, cache: Cache, name: str) -> Speak:
    argue, code = own_function(spec, "function", _ARGUES), content_hash(spec)

    def one(position: Position) -> str:
        key = key_of({"kind": "function", "sha256": code, "spec": spec.rpartition(":")[2], **position.values()})
        if (known := cache.get(key)) is not None:
            return known.text
        try:
            text = argue(*position.values().values())
        except Exception as error:
            raise AfzalError(
                f"{spec} failed: {type(error).__name__}: {error}", where="function", remedy=_ARGUES
            ) from error
        if not isinstance(text, str):
            raise AfzalError(f"{spec} returned {text!r} instead of a text", where="function", remedy=_ARGUES)
        cache.put(key, f"{name}: arguments", Reply(text))
        return text

    return lambda positions: [one(position) for position in positions]


def _reward_debater(folder: str, items: Sequence[Item]) -> Speak:
    """A reward model that states the scores of both answers and their difference."""
    rewards = reward_source(folder, device=pick_device("auto"))

    def speak(positions: Sequence[Position]) -> list[str]:
        asked = list(dict.fromkeys((p.item, answer) for p in positions for answer in (p.own, p.other)))
        values = rewards([items[item].prompt for item, _ in asked], [answer for _, answer in asked])
        known = dict(zip(asked, values, strict=True))
        return [_stated(known[p.item, p.own], known[p.item, p.other]) for p in positions]

    return speak


def _stated(first: float, second: float) -> str:
    return f"Score of answer A: {first:.3f}\nScore of answer B: {second:.3f}\nA less B: {first - second:.3f}"


def _local_model(settings: DebaterConfig) -> Ask:
    """A local model that writes one text at a time."""
    from afzal.generate import Sampling, sample
    from afzal.model.load import load_model, load_tokenizer
    from afzal.model.speakers import speaker_of
    from afzal.records import Message

    assert settings.model is not None
    model = load_model(settings.model, device=pick_device("auto")).requires_grad_(False)
    tokens = speaker_of(model, load_tokenizer(settings.model))
    sampling = Sampling(settings.max_tokens, temperature=settings.temperature)

    def ask(messages: Sequence[Mapping[str, str]], _: Mapping[str, Any]) -> Reply:
        chat = bool(tokens.tokenizer.chat_template)
        plain = "\n\n".join(m["content"] for m in messages) + "\n"
        turns = tuple(Message(m["role"], m["content"]) for m in messages) if chat else plain
        ids = tokens.encode_prompts([turns])[0].tolist()
        (drawn,) = sample(model, [ids], eos=tokens.ends(chat=chat), sampling=sampling, seed=settings.seed)
        text = tokens.continuation(ids, drawn.answer.tolist())
        return Reply(text, drawn.stop if drawn.stop == "length" else "stop", len(ids), len(drawn.ids))

    return ask
