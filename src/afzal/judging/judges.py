"""Judges by name or file, and how each kind is asked about pairs of answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from afzal import config
from afzal.config.debating import DebaterConfig
from afzal.config.judging import PROMPT, SCORE_PROMPT, JudgeConfig, prompt_after
from afzal.data.column_requests import ColumnRequest, column_request, column_values
from afzal.errors import AfzalError
from afzal.hashes import content_hash
from afzal.judge import people, pointwise, prompting, recorded
from afzal.judge.debate import CONTROLS, PROTOCOL_NAMES, Protocol
from afzal.judge.games import Game, Judge, Pair, Ruling, games_of
from afzal.judging import debates
from afzal.model.load import pick_device
from afzal.objectives import names_function
from afzal.records import Item, Turns, media_of
from afzal.rewards.functions import CONTRACT, own_function
from afzal.rewards.source import Columns, Loaders, Rewarder, implicit_rewards, reward_source
from afzal.servers.cache import Cache
from afzal.servers.client import server_from
from afzal.servers.messages import for_server
from afzal.servers.requests import Ask, counter

BETA = 0.1
"""Default beta of an implicit reward, if neither the judge nor its run states one."""


@dataclass(frozen=True, slots=True)
class ResolvedJudge:
    """A requested judge: its name, settings, and a fingerprint of everything that determines its verdicts.

    ``votes`` is a file of people's votes, for people as a judge; ``verdicts`` is a file with the verdicts of a judge of
    that name. Both have no settings. ``protocol`` is set for judges that hear arguments.
    """

    name: str
    settings: JudgeConfig | None
    fingerprint: str
    votes: str = ""
    verdicts: str = ""
    protocol: Protocol | None = None


def resolve_judge(spec: str) -> ResolvedJudge:
    """The judge that ``--judge`` names: a YAML file, ``rule:longest``, ``people:FILE``, ``verdicts:FILE:NAME``,
    ``file.py:function``, or a model folder.

    Raises:
        AfzalError: there is no such judge, or the file does not define one.
    """
    if spec.startswith("rule:"):
        return _resolved(spec, _judge_config([("kind", "rule"), ("rule", spec.removeprefix("rule:"))], spec))
    if spec.startswith("people:"):
        path = spec.removeprefix("people:")
        return ResolvedJudge(f"people ({Path(path).stem})", None, content_hash(path), votes=path)
    if spec.startswith("verdicts:"):
        return _recorded_judge(spec.removeprefix("verdicts:"))
    if spec.startswith("policy:"):
        path = spec.removeprefix("policy:")
        return _resolved(Path(path).name, _judge_config([("kind", "policy"), ("model", path)], spec))
    if names_function(spec):
        return _resolved(spec.rpartition(":")[2], _judge_config([("kind", "function"), ("function", spec)], spec))
    path = Path(spec)
    if path.suffix in (".yaml", ".yml"):
        settings = config.build(JudgeConfig, config.read_file(path))
        return _resolved(settings.name or path.stem, settings)
    if path.is_dir():
        from afzal.folders.kinds import is_reward_model

        kind = "reward" if is_reward_model(path) else "model"
        return _resolved(path.name, _judge_config([("kind", kind), ("model", spec)], spec))
    raise AfzalError(
        f"there is no judge {spec!r}",
        where="--judge",
        remedy="a judge.yaml, a model folder, rule:longest, file.py:function, people:FILE, or verdicts:FILE",
    )


def _recorded_judge(spec: str) -> ResolvedJudge:
    path, _, name = (spec, "", "") if Path(spec).exists() else spec.rpartition(":")
    known = recorded.judges_in(path or spec)
    if name not in known and (name or len(known) > 1):
        raise AfzalError(
            f"there is no judge {name!r} in the file" if name else f"the file has {len(known)} judges",
            where=f"--judge verdicts:{spec}",
            remedy=f"verdicts:{path}:NAME with one of " + ", ".join(known[:30]),
        )
    name = name or known[0]
    return ResolvedJudge(name, None, hashlib.sha256(f"{content_hash(path)} {name}".encode()).hexdigest(), verdicts=path)


def _with_reference(settings: JudgeConfig) -> JudgeConfig:
    """The settings of a policy, completed by the reference and the beta of its run.

    Raises:
        AfzalError: no reference is named, and the folder is not a run with one.
    """
    if settings.reference is not None:
        return settings.model_copy(update={"beta": settings.beta or BETA})
    assert settings.model is not None
    run = config.stated(settings.model)
    reference = run.get("reference")
    if reference in (*config.REFERENCES, None):
        reference = run.get("model") if reference is not None else None
    if reference is None:
        raise AfzalError(
            "the policy's reference is not known",
            where=settings.model,
            why="only the run folder of a method with a reference names one",
            remedy="a judge.yaml with kind: policy, model and reference",
        )
    beta = settings.beta or (run["beta"] if isinstance(run.get("beta"), float) else BETA)
    return settings.model_copy(update={"reference": str(reference), "beta": beta})


def _judge_config(values: Sequence[tuple[str, str]], spec: str) -> JudgeConfig:
    return config.build(JudgeConfig, [config.Setting(key, value, f"--judge {spec}") for key, value in values])


def _resolved(name: str, settings: JudgeConfig) -> ResolvedJudge:
    settings = _with_reference(settings) if settings.kind == "policy" else settings
    argues = settings.kind in CONTROLS
    unused = set() if argues else {"judge", "debater", "assistant", "rounds"}
    what = [settings.model_dump(mode="json", exclude={"name", "timeout", "attempts", "concurrency", *unused})]
    for part in (settings, settings.judge, settings.debater, settings.assistant):
        if part is not None and part.kind != "http":
            named_by = (part.model, part.function, getattr(part, "reference", None))
            what += [content_hash(source) for source in named_by if source]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    protocol: Protocol | None = None
    if settings.assistant is not None and settings.assistant.kind == "none":
        protocol = "alone"
    elif settings.kind == "debate" or settings.kind == "assisted":
        protocol = settings.kind
    return ResolvedJudge(name, settings, digest, protocol=protocol)


def control_judges(n: ResolvedJudge) -> list[ResolvedJudge]:
    """The controls of a judge that hears arguments: the same judge alone, and with one consultant."""
    if n.settings is None or n.protocol in (None, "alone"):
        return []
    made = []
    for protocol in CONTROLS[n.settings.kind]:
        digest = hashlib.sha256(f"{n.fingerprint} {protocol}".encode()).hexdigest()
        made.append(replace(n, name=f"{n.name} ({PROTOCOL_NAMES[protocol]})", fingerprint=digest, protocol=protocol))
    return made


def card_facts(n: ResolvedJudge) -> dict[str, str]:
    """Facts about a judge for its card: kind, model, fingerprint, and ``prompt``."""
    kind = n.settings.kind if n.settings is not None else "people" if n.votes else "verdicts of a file"
    facts = {"kind": kind, "prompt": ""}
    if n.settings is not None and n.settings.kind in ("model", "http"):
        facts["model"] = str(n.settings.model)
        facts["prompt"] = "\n\n".join(x for x in (n.settings.system, prompt_of(n.settings)) if x)
    if n.settings is not None and n.protocol is not None and n.settings.judge is not None:
        who = n.settings.debater or n.settings.assistant
        assert who is not None
        facts |= {"decides": _describe(n.settings.judge), "argues": _describe(who), "rounds": str(n.settings.rounds)}
        facts["prompt"] = prompt_of(n.settings.judge) if n.protocol == "alone" else prompt_after(n.settings)
    if n.settings is not None and n.settings.kind == "policy":
        facts |= {"reference": str(n.settings.reference), "beta": f"{n.settings.beta:g}"}
    return facts | {"fingerprint": n.fingerprint[:16]}


def _describe(settings: JudgeConfig | DebaterConfig) -> str:
    named = settings.function or settings.model
    swapped = " with the answers exchanged" if getattr(settings, "swapped", False) else ""
    return f"{settings.kind} {named}{swapped}" if named else settings.kind


def prices(n: ResolvedJudge) -> tuple[float | None, float | None]:
    """A judge's prices per million tokens of requests and of replies."""
    return (None, None) if n.settings is None else (n.settings.price_in, n.settings.price_out)


def own_source(n: ResolvedJudge, items: Sequence[Item]) -> str | None:
    """The source of answers that is the judge's own model; None if there is none."""
    if n.settings is None:
        return None
    model = n.settings.model or ""
    names = (n.settings.own,) if n.settings.own else (model, Path(model).name)
    sources = {response.source for item in items for response in item.responses}
    return next((name for name in names if name and name in sources), None)


def play_games(
    n: ResolvedJudge, items: Sequence[Item], pairs: Sequence[Pair], cache: Path, say: Callable[[str], None]
) -> tuple[Sequence[Game], Sequence[Ruling]]:
    """The games of a judge on the pairs, and its rulings.

    Args:
        cache: file of a server's replies.
        say: called with progress lines.

    Raises:
        AfzalError: the judge cannot be opened, or its server does not answer; earlier replies are in the cache.
    """
    settings = n.settings
    if n.verdicts:
        return recorded.from_file(n.verdicts, n.name, items, pairs)
    if settings is None:
        games = games_of(pairs, "first")
        voted = people.votes_on(items, n.votes, say)
        for note in people.pooled(voted):
            say(note)
        return games, people.by_people(voted, pairs)(games)
    _refuse_media(n.name, settings, pairs)
    if settings.kind in ("rule", "function", "reward", "policy"):
        games = games_of(pairs, "first")
        return games, _pointwise_judge(settings, items)(games)
    games = games_of(pairs, settings.orders, samples=settings.samples, seed=settings.seed)
    if n.protocol is not None:
        decider = lambda inside, replies: language_model_judge(inside, replies, n.name, say)  # noqa: E731
        return debates.run_debates(settings, n.protocol, items, games, cache, decider, n.name)
    if settings.kind == "model":
        return games, _local(settings)(games)
    with Cache(cache) as replies:
        return games, language_model_judge(settings, replies, n.name, say)(games)


def _refuse_media(name: str, settings: JudgeConfig, pairs: Sequence[Pair]) -> None:
    """Refuse a text-only judge for pairs with images or sounds.

    Raises:
        AfzalError: answers hold media and the judge reads them as text, or the arguments would be about media.
    """
    scores = settings.kind in ("rule", "function", "reward", "policy")
    shown = next((p for p in pairs if any(media_of(t) for t in (p.turns or ())[1 if scores else 0 :])), None)
    if shown is None or not (scores or settings.kind in CONTROLS):
        return
    where = "answers" if scores else "prompts or answers"
    raise AfzalError(
        f"the judge {name} ({settings.kind}) reads only text, and {where} hold images or sounds",
        where=f"item {shown.item + 1}",
        remedy="a judge of kind model or http, people:FILE, or rows without them",
    )


def language_model_judge(settings: JudgeConfig, replies: Cache, name: str, say: Callable[[str], None]) -> Judge:
    """A language model as a judge, local or on a server."""
    if settings.kind == "model":
        return _local(settings)
    ask = _ask(settings)

    def judge(games: Sequence[Game]) -> Sequence[Ruling]:
        on_reply = counter(len(games) * (2 if settings.verdict.score else 1), say)
        about = {"name": name, "concurrency": settings.concurrency, "on_reply": on_reply}
        return prompting.play_games(games, _prompt_settings(settings), ask, replies, **about)

    return judge


def _prompt_settings(settings: JudgeConfig) -> prompting.PromptSettings:
    """How a judge is asked, according to its settings."""
    verdict = settings.verdict
    if verdict.choices is not None:
        read = prompting.by_choices(verdict.choices)
    elif verdict.json_ is not None:
        read = prompting.by_json(verdict.json_.path, verdict.json_.values)
    else:
        assert verdict.score is not None
        read = prompting.by_pattern(verdict.score.pattern)
    return prompting.PromptSettings(
        system=settings.system,
        prompt=prompt_of(settings),
        parse=read,
        pointwise=verdict.score is not None,
        larger_is_better=verdict.score is None or verdict.score.order == "larger",
        temperature=settings.temperature,
        max_tokens=settings.max_tokens,
        seed=settings.seed,
        cache_fields={"kind": settings.kind, "model": settings.model, "url": settings.url},
    )


def prompt_of(settings: JudgeConfig) -> str:
    """The judge's own prompt, or the default one."""
    return settings.prompt or (SCORE_PROMPT if settings.verdict.score else PROMPT)


def _ask(settings: JudgeConfig) -> Ask:
    """A function that asks the judge's server, with images and sounds in the server's format."""
    server = server_from(settings, "judge")
    return lambda messages, sampling: server.ask(for_server(messages), sampling)


def server_rewards(settings: JudgeConfig, name: str, cache: Path) -> Rewarder:
    """Rewards from a server's model that scores each answer alone; larger is better.

    Args:
        settings: of a judge of kind http with ``verdict.score``.
        cache: file of replies; requests with a cached reply are not sent again.

    Raises:
        AfzalError: (when called) as for :func:`afzal.judge.prompting.scores`.
    """
    ask = _ask(settings)
    how = {"name": name, "samples": settings.samples, "concurrency": settings.concurrency}

    def rewards(
        prompts: Sequence[Turns],
        answers: Sequence[str],
        ended: Sequence[bool] | None = None,
        columns: Columns | None = None,
    ) -> list[float]:
        rows = list(zip(prompts, answers, strict=True))
        with Cache(cache) as replies:
            return prompting.scores(rows, _prompt_settings(settings), ask, replies, **how)

    return rewards


def functions_of(specs: Sequence[str]) -> list[tuple[str, ColumnRequest]]:
    """The functions among the judges, by name, with the columns that each asks for.

    Raises:
        AfzalError: one of the judges cannot be opened.
    """
    functions = [
        s.function for spec in specs if (s := resolve_judge(spec).settings) and s.kind == "function" and s.function
    ]
    return [(name, column_request(own_function(name, "function", CONTRACT))) for name in functions]


def _pointwise_judge(settings: JudgeConfig, items: Sequence[Item]) -> Judge:
    if settings.kind == "function":
        own_function(settings.function or "", "function", CONTRACT)
    rewards = rewarder_of(settings, device=pick_device("auto"))
    rows = column_values(items, sorted({name for item in items for name in item.extra}))

    def read(pairs: Sequence[Pair], answers: Sequence[str]) -> list[float]:
        return rewards([items[p.item].prompt for p in pairs], answers, None, [rows[p.item] for p in pairs])

    return pointwise.by_score(read, stated=settings.kind == "policy")


def rewarder_of(
    settings: JudgeConfig,
    *,
    device: torch.device | str = "cpu",
    max_tokens: int = 1024,
    tokens_per_forward: int = 8192,
    eos_token: str | None = None,
    loaders: Loaders | None = None,
) -> Rewarder:
    """Rewards from a judge that scores each answer alone: a rule, a function, a reward model or a policy.

    Args:
        settings: the judge's, as completed by :func:`resolve_judge`.
        eos_token: as for :func:`afzal.rewards.source.reward_source`; only reward models read it.

    Raises:
        AfzalError: as for :func:`afzal.rewards.source.reward_source`.
    """
    if settings.kind == "rule":
        assert settings.rule is not None
        rule = pointwise.rule(settings.rule, settings.pattern)
        return lambda prompts, answers, ended=None, columns=None: list(rule([], answers))  # a rule ignores pairs
    if settings.kind == "policy":
        assert settings.model is not None
        assert settings.reference is not None
        assert settings.beta is not None
        return implicit_rewards(
            settings.model,
            settings.reference,
            beta=settings.beta,
            device=device,
            max_tokens=max_tokens,
            tokens_per_forward=tokens_per_forward,
            loaders=loaders,
        )
    source = settings.function if settings.kind == "function" else settings.model
    assert source is not None
    return reward_source(
        source,
        device=device,
        max_tokens=max_tokens,
        tokens_per_forward=tokens_per_forward,
        eos_token=eos_token,
        loaders=loaders,
    )


def _local(settings: JudgeConfig) -> Judge:
    from afzal.folders.load import load_processor
    from afzal.judge.local import by_log_probs
    from afzal.model.load import load_model, load_tokenizer
    from afzal.model.probe import choose_sharing
    from afzal.model.speakers import speaker_of
    from afzal.train.feed import Layout

    assert settings.model is not None
    device = pick_device("auto")
    model = load_model(settings.model, device=device).requires_grad_(False)
    speaker = speaker_of(model, load_processor(settings.model) or load_tokenizer(settings.model))
    layout = Layout(choose_sharing(model, speaker.limit_tokens(1024))[0], 8192, device)
    assert settings.verdict.choices is not None
    return by_log_probs(_prompt_settings(settings), settings.verdict.choices, model, speaker, layout)
