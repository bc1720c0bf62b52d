"""What is particular to each method: its objectives with their parameters, and which trees they train on.

Everything that would be impossible or ignored is refused here, from the settings and the data alone, before a model is
loaded.
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
    """``select`` turns encoded items (trees, and in the same order the items they were made of) into training trees and
    says what it left out."""

    terms: tuple[Term, ...]
    select: Select

    @property
    def uses(self) -> frozenset[str]:
        """What the objectives take from the data: ``p``, ``weight``, ``margin``, ``score``, ``labels``."""
        return frozenset().union(*(term.objective.uses for term in self.terms))

    @property
    def needs_reference(self) -> bool:
        """Whether any of the objectives uses a reference's log-probs."""
        return any(term.objective.needs_reference for term in self.terms)

    @property
    def needs_mismatched(self) -> bool:
        """Whether rows of other prompts' responses are needed (KTO's KL estimate)."""
        return any(term.objective.statistic is not None for term in self.terms)

    @property
    def shows_pieces(self) -> bool:
        """Whether any of the objectives compares media with pieces of them."""
        return any("piece_log_ratio" in term.objective.extras for term in self.terms)


def recipe_of(config: TrainConfig) -> Recipe:
    """The objectives that the settings name, and what they train on.

    Raises:
        AfzalError: an objective or a parameter is wrong, or a combination impossible or has no effect.
    """
    expression, arguments = METHODS[config.method].objective(config)
    try:
        terms = bind(expression, arguments)
    except ValueError as error:
        raise AfzalError(str(error), where="objective", remedy="see what there is with: afzal objectives") from error
    recipe = Recipe(terms, _selection(terms, config))
    if config.chosen is not None:
        _refuse_combinations(config, config.chosen, recipe)
    return recipe


def _refuse_combinations(config: TrainConfig, chosen: ObjectiveSettings, recipe: Recipe) -> None:
    """Settings that do not go together with the objectives, refused by name."""
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
            known = f"only {', '.join(sorted(learnable))}" if learnable else "nothing"
            raise AfzalError(f"learn: {_names(recipe.terms)} can learn {known}, not {name!r}", remedy="leave it out")
    units = {term.objective.unit for term in recipe.terms}
    if recipe.needs_mismatched and units & {"pair", "group"}:
        raise AfzalError(
            "kto takes responses one by one and cannot stand beside an objective on pairs or groups",
            why=f"objective={chosen.objective}",
            remedy="use bco in its place",
        )


def _refuse_reference_settings(config: TrainConfig, recipe: Recipe) -> None:
    for key in ("reference", "reference_cache", "reference_sync_steps"):
        if getattr(config, key) != type(config).model_fields[key].default:
            raise AfzalError(f"{key} has no effect: {_names(recipe.terms)} has no reference", remedy=f"leave {key} out")


def _names(terms: Iterable[Term]) -> str:
    return ", ".join(term.name for term in terms)


def _selection(terms: Sequence[Term], config: TrainConfig) -> Select:
    """Groups need rankings, pairs comparisons, responses labels; else the good responses are trained on."""
    units = {term.objective.unit for term in terms}
    if "group" in units:
        select = ranked
    elif "pair" in units:
        select = compared
    else:
        select = labelled if "response" in units else best_responses
    paired = [term for term in terms if term.objective.unit == "pair"]
    for term in paired:
        if not {"p", "weight"} <= term.objective.uses:
            select = _after(_plain_pairs(term), select)
    if any("changed" in term.objective.extras for term in terms):
        select = _with_changes(select)
    if config.chosen is not None and config.chosen.soft_labels == "majority":
        select = _after(_majority, select)
    return select


def _after(change: Select, select: Select) -> Select:
    """``select`` on what ``change`` leaves."""

    def both(trees: Sequence[Tree], items: Sequence[Item]) -> Trees:
        changed, lost = change(trees, items)
        kept, more = select(changed, items)
        return kept, [*lost, *more]

    return both


def _with_changes(select: Select) -> Select:
    """``select``, then a tree for each pair, whose scored tokens say where it differs from the other response."""

    def marked(trees: Sequence[Tree], items: Sequence[Item]) -> Trees:
        kept, lost = select(trees, items)
        return [with_changes(_only(t, {q.i, q.j}, [q])) for t in kept for q in t.preferences], lost

    return marked


def _majority(trees: Sequence[Tree], items: Sequence[Item]) -> Trees:
    """Every label that leans one way as if it were certain; ties stay ties."""
    certain = lambda q: replace(q, p=q.p if q.p == 0.5 else float(q.p > 0.5))  # noqa: E731
    return [replace(t, preferences=tuple(map(certain, t.preferences))) for t in trees], []


def _plain_pairs(term: Term) -> Select:
    """Pairs for an objective without p or weight: ties are left out, anything else that it would ignore is refused."""

    def select(trees: Sequence[Tree], items: Sequence[Item]) -> Trees:
        kept, lost = [], []
        for t, item in zip(trees, items, strict=True):
            ties = [q for q in t.preferences if q.p == 0.5]
            decided = tuple(q for q in t.preferences if q.p != 0.5)
            for q in decided:
                _refuse_unused(term, q, item)
            lost += [
                Drop(item.where, item.id, "tie", f"responses {q.i} and {q.j}: {term.name} knows no ties", unit="pair")
                for q in ties
            ]
            kept.append(replace(t, preferences=decided))
        return kept, lost

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
            remedy="leave the weights out (of n pairs of an item each weighs 1 / n), or use another objective",
        )


def best_responses(trees: Sequence[Tree], items: Sequence[Item]) -> Trees:
    """SFT: the response that is never the worse one of a decided pair; all responses where there are no opinions.

    An opinion that orders nothing (both bad, or of weight 0) is one all the same: its responses are not examples.
    """
    kept, lost = [], []
    for t, item in zip(trees, items, strict=True):
        worse = {q.j for q in t.preferences if q.p > 0.5} | {q.i for q in t.preferences if q.p < 0.5}
        good = [k for k in range(len(t.branches)) if not item.votes or _is_good(t, k, worse)]
        found = [only_branch(t, k) for k in good]
        kept += found
        if not found:
            lost.append(_dropped(item, "no_good_response", "no response wins or is labelled good"))
    return kept, lost


def compared(trees: Sequence[Tree], items: Sequence[Item]) -> Trees:
    """Objectives on pairs: items with at least one weighted pair, without branches that no pair names."""
    kept, lost = [], []
    for t, item in zip(trees, items, strict=True):
        pairs = tuple(q for q in t.preferences if q.weight > 0)
        if not pairs:
            lost.append(_dropped(item, "no_pair", "no comparison, or only of weight 0"))
            continue
        kept.append(_only(t, {q.i for q in pairs} | {q.j for q in pairs}, pairs))
    return kept, lost


def ranked(trees: Sequence[Tree], items: Sequence[Item]) -> Trees:
    """Objectives on groups: items whose responses are rated, ranked or wholly ordered, without the others' branches."""
    kept, lost = [], []
    for t, item in zip(trees, items, strict=True):
        known = {k for k, score in enumerate(t.scores) if score is not None}
        if len(known) < 2:
            lost.append(_dropped(item, "no_ranking", "no scores, no ranks, and no certain comparisons that order them"))
            continue
        kept.append(_only(t, known, tuple(q for q in t.preferences if {q.i, q.j} <= known and q.weight > 0)))
    return kept, lost


def labelled(trees: Sequence[Tree], items: Sequence[Item]) -> Trees:
    """Objectives on responses: every labelled one on its own, so that good and bad ones mix freely when shuffled."""
    kept, lost = [], []
    for t, item in zip(trees, items, strict=True):
        found = [only_branch(t, k) for k, label in enumerate(t.labels) if label is not None]
        kept += found
        if not found:
            lost.append(_dropped(item, "no_label", "no response is labelled good or bad"))
    return kept, lost


def _only(t: Tree, branches: set[int], pairs: Sequence[Preference]) -> Tree:
    """The tree with some of its branches, and the given pairs of them."""
    used = sorted(branches)
    at = {k: n for n, k in enumerate(used)}
    return replace(
        t,
        branches=tuple(t.branches[k] for k in used),
        preferences=tuple(replace(q, i=at[q.i], j=at[q.j]) for q in pairs),
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
