"""``afzal judge``: judges by name or file, the pairs they are asked about, and what they leave behind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from afzal import config, data, report
from afzal.config.judging import PROMPT, SCORE_PROMPT, JudgeConfig
from afzal.errors import AfzalError
from afzal.judge import asked, outputs, people, scored, summary
from afzal.judge.cache import Cache
from afzal.judge.games import Game, Judge, Pair, Ruling, games_of, pairs_of
from afzal.judge.server import Server, key_from
from afzal.objectives import names_function
from afzal.recipes.contents import content_hash
from afzal.recipes.named import own_function
from afzal.recipes.rewards import reward_source
from afzal.records import Item, Response, turns_to_json
from afzal.report.text import duration

WORST = 20


@dataclass(frozen=True, slots=True)
class Named:
    """A judge that was asked for: its name, settings, and a fingerprint of all that decides its verdicts.

    ``votes`` is the file of people's votes, for people as a judge, whose settings are of no kind.
    """

    name: str
    settings: JudgeConfig | None
    fingerprint: str
    votes: str = ""


def named(spec: str) -> Named:
    """What ``--judge`` names: a YAML file, ``rule:longest``, ``people:FILE``, ``file.py:function``, or a model folder.

    Raises:
        AfzalError: it names nothing, or the file is no judge.
    """
    if spec.startswith("rule:"):
        return _named(spec, _built([("kind", "rule"), ("rule", spec.removeprefix("rule:"))], spec))
    if spec.startswith("people:"):
        path = spec.removeprefix("people:")
        return Named(f"people ({Path(path).stem})", None, content_hash(path), votes=path)
    if names_function(spec):
        return _named(spec.rpartition(":")[2], _built([("kind", "function"), ("function", spec)], spec))
    path = Path(spec)
    if path.suffix in (".yaml", ".yml"):
        settings = config.build(JudgeConfig, config.read_file(path))
        return _named(settings.name or path.stem, settings)
    if path.is_dir():
        from afzal.folders.kinds import is_reward_model

        kind = "reward" if is_reward_model(path) else "model"
        return _named(path.name, _built([("kind", kind), ("model", spec)], spec))
    raise AfzalError(
        f"there is no judge {spec!r}",
        where="--judge",
        remedy="a judge.yaml, a model folder, rule:longest, file.py:function, or people:votes.jsonl",
    )


def _built(values: Sequence[tuple[str, str]], spec: str) -> JudgeConfig:
    return config.build(JudgeConfig, [config.Setting(key, value, f"--judge {spec}") for key, value in values])


def _named(name: str, settings: JudgeConfig) -> Named:
    what = [settings.model_dump(mode="json", exclude={"name", "timeout", "attempts", "concurrency"})]
    what += [content_hash(s) for s in (settings.model, settings.function) if s and settings.kind != "http"]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    return Named(name, settings, digest)


def read_items(source: str, against: str | None = None) -> list[Item]:
    """Rows with two answers or more; with ``against``, the answers of two files to the same prompts, set side by side.

    Raises:
        AfzalError: there is nothing to compare.
    """
    ours = list(data.read(source).items)
    if against is not None:
        ours = _side_by_side(ours, list(data.read(against).items), _stem(source), _stem(against))
    found = [item for item in ours if len(item.responses) >= 2]
    if not found:
        raise AfzalError(
            "there are no two answers to one prompt",
            where=source,
            remedy="rows with several responses, or the answers of another model with --against FILE",
        )
    return found


def _stem(source: str) -> str:
    return Path(source).name.partition(".")[0]


def _side_by_side(ours: Sequence[Item], theirs: Sequence[Item], name: str, other: str) -> list[Item]:
    """One row for each prompt that both files answer: our answers and theirs, the k-th beside the k-th."""
    if name == other:
        name, other = f"{name} (1)", f"{other} (2)"

    def by_prompt(items: Sequence[Item]) -> dict[str, list[tuple[Item, Response]]]:
        found: dict[str, list[tuple[Item, Response]]] = {}
        for item in items:
            answers = [(item, r) for r in item.responses]
            found.setdefault(json.dumps(turns_to_json(item.prompt)), []).extend(answers)
        return found

    a, b = by_prompt(ours), by_prompt(theirs)
    rows = []
    for prompt, answers in a.items():
        for k, ((item, mine), (_, yours)) in enumerate(zip(answers, b.get(prompt, ()), strict=False)):
            both = (replace(mine, source=name), replace(yours, source=other))
            rows.append(Item(f"{item.id}/{k}", item.prompt, both, (), item.where, item.group))
    return rows


def judged(
    items: Sequence[Item],
    specs: Sequence[str],
    out: Path,
    *,
    voted: Sequence[Item] | None = None,
    cache: Path | None = None,
    resamples: int = 1000,
    say: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Let every judge judge every pair, write all that there is to say into ``out``, and return the summaries.

    Args:
        voted: the same rows with people's votes, to set the judges beside.
        cache: of replies; default ``out/replies.sqlite``.

    Raises:
        AfzalError: a judge cannot be had, or its server does not answer; what it said before is in the cache.
    """
    pairs = pairs_of(items)
    beside = people.labels_on(voted, pairs) if voted is not None else None
    known = [named(spec) for spec in specs]
    if len({n.name for n in known}) < len(known):
        raise AfzalError(
            "two judges have the same name", where="--judge", remedy="give them a name in their YAML files"
        )
    verdicts, summaries, rows = [], [], list(items)
    for n in known:
        games, rulings = _played(n, items, pairs, cache or out / "replies.sqlite", say)
        verdicts += [
            outputs.verdict_row(n.name, n.fingerprint, items, g, r) for g, r in zip(games, rulings, strict=True)
        ]
        found = summary.summary(n.name, items, pairs, games, rulings, people=beside, resamples=resamples)
        summaries.append(found | {"sha256": n.fingerprint})
        rows = outputs.with_votes(rows, n.name, games, rulings)
        body = outputs.card(found, _about(n), _worst(pairs, games, rulings, beside))
        report.write_board(out, body, "judge_card" if len(known) == 1 else f"judge_card-{_slug(n.name)}")
    outputs.write(out, rows, verdicts, summaries)
    return summaries


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)


def _about(n: Named) -> dict[str, str]:
    about = {"kind": "people", "prompt": ""} if n.settings is None else {"kind": n.settings.kind, "prompt": ""}
    if n.settings is not None and n.settings.kind in ("model", "http"):
        about["model"] = str(n.settings.model)
        about["prompt"] = "\n\n".join(x for x in (n.settings.system, prompt_of(n.settings)) if x)
    return about | {"fingerprint": n.fingerprint[:16]}


def _played(
    n: Named, items: Sequence[Item], pairs: Sequence[Pair], cache: Path, say: Callable[[str], None]
) -> tuple[list[Game], Sequence[Ruling]]:
    settings = n.settings
    if settings is None:
        games = games_of(pairs, "first")
        return games, people.by_people(people.votes_on(items, n.votes), pairs)(games)
    if settings.kind in ("rule", "function", "reward"):
        games = games_of(pairs, "first")
        return games, _scorer(settings, items)(games)
    games = games_of(pairs, settings.orders, samples=settings.samples, seed=settings.seed)
    if settings.kind == "model":
        return games, _local(settings)(games)
    assert settings.url is not None
    assert settings.model is not None
    server = Server(
        settings.url, settings.model, key_from(settings.key_env), timeout=settings.timeout, attempts=settings.attempts
    )
    with Cache(cache) as replies:
        total = len(games) * (2 if settings.verdict.score else 1)
        heard = _counter(total, say)
        return games, asked.played(
            games, _asking(settings), server.ask, replies, name=n.name, concurrency=settings.concurrency, heard=heard
        )


def _counter(total: int, say: Callable[[str], None]) -> Callable[[int], None]:
    """Says every tenth of the way, with the time that is left at the present pace."""
    import time

    began, said = time.monotonic(), [0]

    def heard(n: int) -> None:
        if 10 * n // total > said[0]:
            said[0] = 10 * n // total
            left = (time.monotonic() - began) / n * (total - n)
            say(f"{n} of {total} replies, about {duration(left)} left")

    return heard


def _asking(settings: JudgeConfig) -> asked.Asking:
    """How a judge is asked, from its settings."""
    verdict = settings.verdict
    if verdict.choices is not None:
        read = asked.by_choices(verdict.choices)
    elif verdict.json_ is not None:
        read = asked.by_json(verdict.json_.path, verdict.json_.values)
    else:
        assert verdict.score is not None
        read = asked.by_pattern(verdict.score.pattern)
    return asked.Asking(
        system=settings.system,
        prompt=prompt_of(settings),
        read=read,
        alone=verdict.score is not None,
        larger=verdict.score is None or verdict.score.order == "larger",
        temperature=settings.temperature,
        max_tokens=settings.max_tokens,
        seed=settings.seed,
        about={"kind": settings.kind, "model": settings.model, "url": settings.url},
    )


def prompt_of(settings: JudgeConfig) -> str:
    """The judge's own prompt, or the usual one."""
    return settings.prompt or (SCORE_PROMPT if settings.verdict.score else PROMPT)


def _scorer(settings: JudgeConfig, items: Sequence[Item]) -> Judge:
    if settings.kind == "rule":
        assert settings.rule is not None
        return scored.by_score(scored.rule(settings.rule, settings.pattern))
    spec = settings.function if settings.kind == "function" else settings.model
    assert spec is not None
    if settings.kind == "function":
        own_function(spec, "function", "function(prompt, answer) returns a number")
    rewards = reward_source(spec)
    return scored.by_score(lambda pairs, answers: rewards([items[p.item].prompt for p in pairs], answers))


def _local(settings: JudgeConfig) -> Judge:
    from afzal.judge.local import by_log_probs
    from afzal.model.load import context_of_model, load_model, load_tokenizer, pick_device
    from afzal.model.probe import choose_sharing
    from afzal.train.feed import Layout

    assert settings.model is not None
    device = pick_device("auto")
    model, tokenizer = load_model(settings.model, device=device).requires_grad_(False), load_tokenizer(settings.model)
    longest = context_of_model(model) or 1 << 20
    layout = Layout(choose_sharing(model, min(longest, 1024))[0], 8192, device)
    assert settings.verdict.choices is not None
    return by_log_probs(_asking(settings), settings.verdict.choices, model, tokenizer, layout, longest)


def _worst(
    pairs: Sequence[Pair], games: Sequence[Game], rulings: Sequence[Ruling], beside: Any
) -> list[dict[str, str]]:
    """Pairs to read: without a verdict, judged differently in the two orders, or against what most people say."""
    from afzal.judge.aggregate import aggregate

    table, together = summary.codes(pairs, games, rulings)
    p = None if beside is None else aggregate(beside, "majority").p_first
    why: dict[int, str] = {}
    for k in range(len(pairs)):
        if together[k] == -1:
            why[k] = "no verdict"
        elif set(table[k].tolist()) == {1, 2}:
            why[k] = "each order names another winner"
        elif p is not None and p[k] == p[k] and p[k] != 0.5 and together[k] > 0 and (p[k] > 0.5) != (together[k] == 1):
            why[k] = "people prefer the other"
    order = sorted(why, key=lambda k: ("people" not in why[k], k))[:WORST]
    short = lambda text: text if len(text) <= 2000 else text[:2000] + " …"  # noqa: E731
    return [
        {
            "why": why[k],
            "prompt": short(pairs[k].prompt),
            "first": short(pairs[k].answers[0]),
            "second": short(pairs[k].answers[1]),
        }
        for k in order
    ]
