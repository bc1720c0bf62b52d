"""The part of preparation that depends on the method: its objectives with their parameters, and the trees they train
on.

Everything impossible or ignored is refused here, from the settings and the data alone, before a model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from afzal.config import METHODS, TrainConfig
from afzal.config.sections import ObjectiveSettings
from afzal.drops import Drop
from afzal.errors import AfzalError
from afzal.objectives import Term, bind
from afzal.records import Item, Preference
from afzal.tokens.changes import with_changes
from afzal.tokens.tree import Tree, only_branch

Trees = tuple[list[Tree], list[Drop]]
Select = Callable[[Sequence[Tree], Sequence[Item]], Trees]


@dataclass(frozen=True, slots=True)
class Recipe:
    """The objectives of a method. ``select`` turns encoded items (trees, and their items in the same order) into
    training trees and drops."""

    terms: tuple[Term, ...]
    select: Select

    @property
    def uses(self) -> frozenset[str]:
        """The values that the objectives take from the data: ``p``, ``weight``, ``margin``, ``score``, ``labels``."""
        return frozenset().union(*(term.objective.uses for term in self.terms))

    @property
    def needs_reference(self) -> bool:
        """Whether any objective uses a reference's log-probs."""
        return any(term.objective.needs_reference for term in self.terms)

    @property
    def needs_mismatched(self) -> bool:
        """Whether prompts with other prompts' responses are needed (for KTO's KL estimate)."""
        return any(term.objective.statistic is not None for term in self.terms)

    @property
    def shows_pieces(self) -> bool:
        """Whether any objective compares media with pieces of them."""
        return any("piece_log_ratio" in term.objective.extras for term in self.terms)


def recipe_of(config: TrainConfig) -> Recipe:
    """The objectives that the settings name, and the selection of their training trees.

    Raises:
        AfzalError: an objective or a parameter is wrong, or a combination is impossible or has no effect.
    """
    expression, arguments = METHODS[config.method].objective(config)
    try:
        terms = bind(expression, arguments)
    except ValueError as error:
        raise AfzalError(str(error), where="objective", remedy="list the objectives with: afzal objectives") from error
    recipe = Recipe(terms, _selection(terms, config))
    if config.chosen is not None:
        _refuse_combinations(config, config.chosen, recipe)
    return recipe


def _refuse_combinations(config: TrainConfig, chosen: ObjectiveSettings, recipe: Recipe) -> None:
    """Refuse settings that cannot be combined with the objectives, by name."""
    for term in recipe.terms:
        if term.objective.scores == "reward":
            raise AfzalError(f"objective {term.name!r} trains reward models, not policies", remedy="objective=dpo")
        if term.objective.scores == "rollout":
            raise AfzalError(
                f"objective {term.name!r} learns from the policy's own answers, not from data",
                remedy=f"afzal train {' or '.join(name for name, method in METHODS.items() if method.online)}",
            )
        if (
            term.objective.needs_live_reference
            and config.referenced is not None
            and config.referenced.reference == "cached"
        ):
            raise AfzalError(
                f"objective {term.name!r} cannot use reference=cached",
                why="it compares whole next-token distributions, and a cache holds one log-prob per token",
                remedy="reference=frozen",
            )
    if not recipe.needs_reference:
        _refuse_reference_settings(config, recipe)
    learnable = {name for term in recipe.terms for name in term.objective.learnable}
    for name in chosen.learn or ():
        if name not in learnable:
            allowed = f"only {', '.join(sorted(learnable))}" if learnable else "nothing"
            raise AfzalError(f"learn: {_names(recipe.terms)} can learn {allowed}, not {name!r}", remedy="leave it out")
    units = {term.objective.unit for term in recipe.terms}
    if recipe.needs_mismatched and units & {"pair", "group"}:
        raise AfzalError(
            "kto takes single responses and cannot be combined with an objective on pairs or groups",
            why=f"objective={chosen.objective}",
            remedy="use bco instead",
        )


def _refuse_reference_settings(config: TrainConfig, recipe: Recipe) -> None:
    for key in ("reference", "reference_cache", "reference_sync_steps"):
        if getattr(config, key) != type(config).model_fields[key].default:
            raise AfzalError(f"{key} has no effect: {_names(recipe.terms)} has no reference", remedy=f"leave {key} out")


def _names(terms: Iterable[Term]) -> str:
    return ", ".join(term.name for term in terms)


def _selection(terms: Sequence[Term], config: TrainConfig) -> Select:
    """Groups need rankings, pairs need comparisons, responses need labels; otherwise the good responses are trained
    on."""
    units = {term.objective.unit for term in terms}
    if "group" in units:
        select = ranked
    elif "pair" in units:
        select = compared
    else:
        select = labelled if "response" in units else best_responses
    pair_terms = [term for term in terms if term.objective.unit == "pair"]
    for term in pair_terms:
        if not {"p", "weight"} <= term.objective.uses:
            select = _after(_plain_pairs(term), select)
    if any("changed" in term.objective.extras for term in terms):
        select = _with_changes(select)
    if config.chosen is not None and config.chosen.soft_labels == "majority":
        select = _after(_majority, select)
    return select


def _after(change: Select, select: Select) -> Select:
    """Apply ``change``, then ``select`` to the result."""

    def chain(trees: Sequence[Tree], items: Sequence[Item]) -> Trees:
        changed, drops = change(trees, items)
        selected, further = select(changed, items)
        return selected, [*drops, *further]

    return chain


def _with_changes(select: Select) -> Select:
    """Apply ``select``, then make one tree per pair that marks the tokens in which its two responses differ."""

    def select_marked(trees: Sequence[Tree], items: Sequence[Item]) -> Trees:
        selected, drops = select(trees, items)
        return [with_changes(_restrict(t, {q.i, q.j}, [q])) for t in selected for q in t.preferences], drops

    return select_marked


def _majority(trees: Sequence[Tree], items: Sequence[Item]) -> Trees:
    """Round every probability to 0 or 1; ties stay ties."""
    rounded = lambda q: replace(q, p=q.p if q.p == 0.5 else float(q.p > 0.5))  # noqa: E731
    return [replace(t, preferences=tuple(map(rounded, t.preferences))) for t in trees], []


def _plain_pairs(term: Term) -> Select:
    """Select pairs for an objective without p or weight: ties are dropped, anything else that it would ignore is
    refused."""

    def select(trees: Sequence[Tree], items: Sequence[Item]) -> Trees:
        selected, drops = [], []
        for t, item in zip(trees, items, strict=True):
            ties = [q for q in t.preferences if q.p == 0.5]
            decided = tuple(q for q in t.preferences if q.p != 0.5)
            for q in decided:
                _refuse_unused(term, q, item)
            drops += [
                Drop(item.where, item.id, "tie", f"responses {q.i} and {q.j}: {term.name} cannot use ties", unit="pair")
                for q in ties
            ]
            selected.append(replace(t, preferences=decided))
        return selected, drops

    return select


def _refuse_unused(term: Term, q: Preference, item: Item) -> None:
    if q.p not in (0.0, 1.0) and "p" not in term.objective.uses:
        raise AfzalError(
            f"objective {term.name!r} takes certain labels only, and this one has the probability {q.p:g}",
            where=item.where or item.id,
            remedy="soft_labels=majority, or an objective that uses probabilities, such as dpo",
        )
    if q.weight not in (0.0, 1.0) and "weight" not in term.objective.uses:
        raise AfzalError(
            f"objective {term.name!r} takes no weights, and this pair has the weight {q.weight:g}",
            where=item.where or item.id,
            remedy="leave the weights out (each of an item's n pairs weighs 1 / n), or use another objective",
        )


def best_responses(trees: Sequence[Tree], items: Sequence[Item]) -> Trees:
    """For SFT: the responses that win or are labelled good and never lose a decided pair; all responses if there are no
    opinions.

    An opinion that orders nothing (both bad, or of weight 0) still counts as an opinion: its responses are no examples.
    """
    selected, drops = [], []
    for t, item in zip(trees, items, strict=True):
        worse = {q.j for q in t.preferences if q.p > 0.5} | {q.i for q in t.preferences if q.p < 0.5}
        good = [k for k in range(len(t.branches)) if not item.votes or _is_good(t, k, worse)]
        examples = [only_branch(t, k) for k in good]
        selected += examples
        if not examples:
            drops.append(_dropped(item, "no_good_response", "no response wins or is labelled good"))
    return selected, drops


def compared(trees: Sequence[Tree], items: Sequence[Item]) -> Trees:
    """For objectives on pairs: items with at least one weighted pair, without unpaired branches."""
    selected, drops = [], []
    for t, item in zip(trees, items, strict=True):
        pairs = tuple(q for q in t.preferences if q.weight > 0)
        if not pairs:
            drops.append(_dropped(item, "no_pair", "no comparison, or only of weight 0"))
            continue
        selected.append(_restrict(t, {q.i for q in pairs} | {q.j for q in pairs}, pairs))
    return selected, drops


def ranked(trees: Sequence[Tree], items: Sequence[Item]) -> Trees:
    """For objectives on groups: items with scored, ranked or fully ordered responses, without other branches."""
    selected, drops = [], []
    for t, item in zip(trees, items, strict=True):
        scored = {k for k, score in enumerate(t.scores) if score is not None}
        if len(scored) < 2:
            drops.append(
                _dropped(item, "no_ranking", "no scores, no ranks, and no certain comparisons that order them")
            )
            continue
        selected.append(_restrict(t, scored, tuple(q for q in t.preferences if {q.i, q.j} <= scored and q.weight > 0)))
    return selected, drops


def labelled(trees: Sequence[Tree], items: Sequence[Item]) -> Trees:
    """For objectives on responses: one tree per labelled response, so that shuffling mixes good and bad ones freely."""
    selected, drops = [], []
    for t, item in zip(trees, items, strict=True):
        examples = [only_branch(t, k) for k, label in enumerate(t.labels) if label is not None]
        selected += examples
        if not examples:
            drops.append(_dropped(item, "no_label", "no response is labelled good or bad"))
    return selected, drops


def _restrict(t: Tree, branches: set[int], pairs: Sequence[Preference]) -> Tree:
    """The tree reduced to some of its branches, with the given pairs."""
    used = sorted(branches)
    position = {k: n for n, k in enumerate(used)}
    return replace(
        t,
        branches=tuple(t.branches[k] for k in used),
        preferences=tuple(replace(q, i=position[q.i], j=position[q.j]) for q in pairs),
        labels=tuple(t.labels[k] for k in used) if t.labels else (),
        scores=tuple(t.scores[k] for k in used) if t.scores else (),
    )


def _is_good(t: Tree, branch: int, worse: set[int]) -> bool:
    labelled_bad = bool(t.labels) and t.labels[branch] is False
    labelled_good = bool(t.labels) and t.labels[branch] is True
    won = any((q.i == branch and q.p > 0.5) or (q.j == branch and q.p < 0.5) for q in t.preferences)
    return branch not in worse and not labelled_bad and (labelled_good or won)


def _dropped(item: Item, reason: str, detail: str) -> Drop:
    return Drop(item.where, item.id, reason, detail)
