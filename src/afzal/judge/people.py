"""People as a judge: the most frequent label of each pair in a file of votes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from afzal import data
from afzal.data import without_verdicts
from afzal.errors import AfzalError
from afzal.judge.aggregate import aggregate
from afzal.judge.games import Game, Judge, Pair, Ruling
from afzal.judge.labels import Labels, of_items
from afzal.judge.verdicts import from_probability
from afzal.records import Comparison, Item, comparisons, pooled_axes, prompt_key, turns_to_json


def votes_on(items: Sequence[Item], path: str, say: Callable[[str], None] = lambda line: None) -> list[Item]:
    """The rows with their votes replaced by people's comparisons of the same prompts and answers in a file.

    Args:
        say: called with the number of judges' verdicts in the file, which are not people's votes.

    Raises:
        AfzalError: the file has no votes of people on these pairs.
    """
    read = data.read(path).items
    by_people = without_verdicts(read)
    for note in by_people.notes(Path(path).name):
        say(note)
    rows = _matched(items, by_people.items)
    if any(item.votes for item in rows):
        return rows
    if by_people.verdicts and any(item.votes for item in _matched(items, read)):
        raise AfzalError(
            f"{Path(path).name} holds no votes of people on these pairs",
            where=path,
            why=f"it holds {by_people.in_words}",
            remedy="name the file or folder of people's votes; to measure judges against each other, name all of them "
            "with --judge",
        )
    raise AfzalError(
        f"{Path(path).name} holds no votes on these pairs",
        where=path,
        why="votes are matched to pairs by the exact texts of prompt and answers",
        remedy="look at both files with afzal check",
    )


def _matched(items: Sequence[Item], voted_items: Sequence[Item]) -> list[Item]:
    """The rows with their votes replaced by the others' comparisons of the same prompts and answers."""
    votes_by_prompt: dict[str, list[tuple[Item, Comparison]]] = {}
    for voted_item in voted_items:
        for vote in comparisons(voted_item.votes):
            votes_by_prompt.setdefault(repr(turns_to_json(voted_item.prompt)), []).append((voted_item, vote))
    rows = []
    for item in items:
        places = {repr(turns_to_json(r.turns)): k for k, r in enumerate(item.responses)}
        votes = []
        for voted_item, vote in votes_by_prompt.get(repr(turns_to_json(item.prompt)), ()):
            answers = [repr(turns_to_json(r.turns)) for r in voted_item.responses]
            first, second = places.get(answers[vote.first]), places.get(answers[vote.second])
            if first is None or second is None or first == second:
                continue
            shown_first = None if vote.shown_first is None else places.get(answers[vote.shown_first])
            votes.append(vote.between(first, second, shown_first))
        rows.append(replace(item, votes=tuple(votes)))
    return rows


def labels_on(items: Sequence[Item], pairs: Sequence[Pair]) -> Labels | None:
    """The votes of rows as labels, in the numbering of the pairs; None without any.

    Axes are pooled. A person's votes on different axes are separate opinions, so somebody who voted on two counts as
    two annotators, ``ann (helpful)`` and ``ann (harmless)``.
    """
    if not any(True for item in items for _ in comparisons(item.votes)):
        return None
    import numpy as np

    labels = of_items(items)
    place = {(p.item, p.first, p.second): k for k, p in enumerate(pairs)}
    target = [place[pair[:3]] for pair in labels.pairs]
    gold = np.full(len(pairs), -1)
    gold[target] = labels.gold
    numbered = [(p.item, p.first, p.second, None) for p in pairs]
    prompts = [""] * len(pairs)
    for k, pair in enumerate(pairs):
        prompts[k] = prompt_key(items[pair.item])
    names, people = labels.annotators, [s.annotator for s in labels.entries]
    if pooled_axes(items):
        voters = [(labels.annotators[s.annotator], labels.pairs[s.pair][3]) for s in labels.entries]
        known = {person: k for k, person in enumerate(dict.fromkeys(voters))}
        names = tuple(name if axis is None else f"{name} ({axis})" for name, axis in known)
        people = [known[person] for person in voters]
    renumbered = tuple(
        replace(s, pair=target[s.pair], annotator=k) for s, k in zip(labels.entries, people, strict=True)
    )
    return Labels(tuple(numbered), tuple(prompts), names, renumbered, gold)


def pooled(items: Sequence[Item] | None) -> list[str]:
    """A note if the votes of rows are on several axes."""
    axes = pooled_axes(items or ())
    return [f"note: people's votes on {axes} are pooled; each answers a different question"] if axes else []


def by_people(items: Sequence[Item], pairs: Sequence[Pair]) -> Judge:
    """A judge that gives the majority's verdict on a pair, and no verdict if nobody ordered it."""
    labels = labels_on(items, pairs)
    place = {pair: k for k, pair in enumerate(pairs)}
    p_first = None if labels is None else aggregate(labels, "majority").p_first

    def judge(games: Sequence[Game]) -> list[Ruling]:
        rulings = []
        for game in games:
            p = float("nan") if p_first is None else float(p_first[place[game.pair]])
            rulings.append(Ruling(from_probability(p)) if p == p else Ruling("none", why="nobody ordered this pair"))
        return rulings

    return judge
