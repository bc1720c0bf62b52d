"""The loss of a batch, and held-out evaluation: every metric is a sum divided by a count."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from afzal.errors import AfzalError
from afzal.model.logprobs import head_logps, predicting, score
from afzal.model.statistics import score_with
from afzal.model.value import Critic
from afzal.objectives import Pairs, Scored, Term, join_pairs, join_scored, unit_weights
from afzal.objectives.metrics import Tally, add, correct, means, tally, unmoved
from afzal.stats.correlation import paired_correlation
from afzal.stats.intervals import clustered, share
from afzal.tokens.batch import Batch
from afzal.tokens.upload import upload
from afzal.train import ranks, task_metrics
from afzal.train.method import Carried, Method
from afzal.train.user_code import call_objective


def host_pairs(batch: Batch) -> Pairs:
    """The opinions on the responses of a batch, on the host."""
    rows = batch.preferences
    index, real = rows[:, :2].long(), rows[:, 2:].float()
    return Pairs(
        index[:, 0],
        index[:, 1],
        real[:, 0],
        real[:, 1],
        real[:, 2],
        batch.desirable,
        batch.group_of,
        batch.score,
        batch.task_of,
    )


def batch_pairs(batch: Batch) -> Pairs:
    """The opinions of a batch as objectives take them, on the device of its log-probs."""
    pairs, device = host_pairs(batch), batch.ids.device
    return Pairs(*(upload(getattr(pairs, field.name), device) for field in fields(pairs)))


@dataclass(frozen=True, slots=True)
class ScoredBatch:
    """Responses scored by both models, and the opinions on them."""

    policy: Scored
    reference: Scored | None
    pairs: Pairs


def score_batch(model: Any, method: Method, batch: Batch) -> ScoredBatch:
    """Score one batch by policy and reference, with the statistics that the method needs and the batch's own
    numbers."""
    reference = method.reference
    statistics = method.statistics
    if statistics:
        policy, ref = score_with(model, reference, batch, statistics, method.temperature)
    elif method.critic is not None:
        policy, ref = _with_values(model, method, method.critic, batch), None
    else:
        policy, ref = score(model, batch, method.temperature), None
    if ref is None and reference is not None:
        ref = reference.score(batch)
    if method.shows_pieces:
        policy = replace(policy, extras={**policy.extras, "piece_log_ratio": _media_log_ratio(model, method, batch)})
    if batch.numbers:
        policy = replace(policy, extras={**policy.extras, **batch.numbers})
    return ScoredBatch(policy, ref, batch_pairs(batch))


def _media_log_ratio(model: Any, method: Method, batch: Batch) -> Tensor:
    """``[M]`` log-ratio of each scored token to the reference, both given pieces of the media; with gradient."""
    assert method.reference is not None
    pieces = batch.in_pieces
    return score(model, pieces, method.temperature).token_logps - method.reference.score(pieces).token_logps


def _with_values(model: Any, method: Method, critic: Critic, batch: Batch) -> Scored:
    """Log-probs, with the value model's ``value`` of every token; a shared trunk is run once."""
    hidden = predicting(model, batch)
    logps = head_logps(model, hidden, batch.target, method.temperature)
    return Scored(logps, batch.response_of, batch.n_responses, {"value": critic.values(batch, hidden)})


def score_batch_or_empty(model: Any, method: Method, batch: Batch) -> ScoredBatch:
    """Like :func:`score_batch`; for an idle batch, without any responses."""
    scored = score_batch(model, method, batch)
    return emptied(scored) if batch.idle else scored


def emptied(scored: ScoredBatch) -> ScoredBatch:
    """The same kinds of numbers for no responses."""
    policy, reference = (
        _empty_scored(scored.policy),
        None if scored.reference is None else _empty_scored(scored.reference),
    )
    return ScoredBatch(policy, reference, Pairs(*(getattr(scored.pairs, f.name)[:0] for f in fields(Pairs))))


def _empty_scored(scored: Scored) -> Scored:
    extras = {name: value[:0] for name, value in scored.extras.items()}
    return Scored(scored.token_logps[:0], scored.response_of[:0], 0, extras)


def gather_batches(local: ScoredBatch) -> list[ScoredBatch]:
    """The scored batches of all data ranks, in rank order, as constants."""
    if ranks.world() == 1:
        return [local]
    scored = {"policy": local.policy} | ({"reference": local.reference} if local.reference is not None else {})
    flat = {f"pairs/{f.name}": getattr(local.pairs, f.name) for f in fields(local.pairs)}
    for owner, s in scored.items():
        flat |= {f"{owner}/token_logps": s.token_logps, f"{owner}/response_of": s.response_of}
        flat |= {f"{owner}/extras/{name}": value for name, value in s.extras.items()}
    counts = ranks.gather_data(local.policy.n_responses)
    return [_unflattened(part, n) for part, n in zip(ranks.gather_tensors(flat), counts, strict=True)]


def _unflattened(flat: Mapping[str, Tensor], n_responses: int) -> ScoredBatch:
    def scored(owner: str) -> Scored:
        start = f"{owner}/extras/"
        extras = {name.removeprefix(start): value for name, value in flat.items() if name.startswith(start)}
        return Scored(flat[f"{owner}/token_logps"], flat[f"{owner}/response_of"], n_responses, extras)

    reference = scored("reference") if "reference/token_logps" in flat else None
    return ScoredBatch(scored("policy"), reference, Pairs(*(flat[f"pairs/{f.name}"] for f in fields(Pairs))))


def join_batches(parts: Sequence[ScoredBatch]) -> ScoredBatch:
    """Several batches as one."""
    references = [part.reference for part in parts if part.reference is not None]
    return ScoredBatch(
        join_scored([part.policy for part in parts]),
        join_scored(references) if references else None,
        join_pairs([part.pairs for part in parts], [part.policy.n_responses for part in parts]),
    )


@dataclass(frozen=True, slots=True)
class Losses:
    """Losses of one batch: for each term its weighted sum of losses and its count; the metric sums; and, for the main
    objective, the rewards ``[B]``, detached, and losses and weights ``[n]`` of its units."""

    sums: tuple[Tensor, ...]
    counts: tuple[Tensor, ...]
    metrics: Tally
    rewards: Tensor | None
    units: tuple[Tensor, Tensor]


def losses_of(method: Method, scored: ScoredBatch, carried: Carried, pooled: Mapping[str, Tensor]) -> Losses:
    """Every term's losses of one batch (or of several, joined)."""
    sums, counts, metrics, main, units = [], [], {}, None, None
    for term in method.terms:
        objective, policy, pairs = term.objective, scored.policy, scored.pairs
        reference = scored.reference if objective.needs_reference else None
        keywords = method.keywords(term, carried, pooled)
        losses, weights, rewards = call_objective(objective, policy, reference, pairs, keywords)
        sums.append((losses * weights).sum())
        counts.append(weights.sum())
        main, units = (rewards, (losses, weights)) if term is method.main else (main, units)
        if objective.metrics is not None:
            metrics |= objective.metrics(policy, pairs, **term.parameters)
        elif term is method.main:
            metrics |= tally(objective.unit, policy, rewards, pairs, reference)
            if objective.scores == "reward":  # there are no log-probs, and a score is not a length
                metrics = {name: value for name, value in metrics.items() if name.startswith("rewards/")}
    assert units is not None
    return Losses(tuple(sums), tuple(counts), metrics, main, units)


def by_term(method: Method, losses: Losses) -> Tally:
    """Each term's weighted sum of losses and its weight, as ``loss/<term>``."""
    terms = zip(method.terms, losses.sums, losses.counts, strict=True)
    return {f"loss/{term.name}": (s.double(), n.double()) for term, s, n in terms}


def weighted_mean(method: Method, tallies: Tally) -> tuple[Tensor, Tensor]:
    """The sum over terms of weight * (sum of losses / their weight), from :func:`by_term`; and 1 if any term has any
    weight, else 0. A term without any adds 0."""
    parts, weights = [], []
    for term in method.terms:
        total, weight = tallies[f"loss/{term.name}"]
        parts.append(term.weight * torch.where(weight != 0, total / weight, 0.0))
        weights.append(weight)
    return torch.stack(parts).sum(), (torch.stack(weights) != 0).any().double()


def batch_counts(method: Method, batch: Batch, weight_per_item: float | None = None) -> list[float]:
    """A batch's share, for each term, of the divisor of the update's summed losses; known before any forward pass and
    without reading from the device.

    Responses, groups and tokens are counted. For pairs it is the number of their items times the mean weight of an item
    in the full training set, so that no weight is normalised by its neighbours in the update.

    Args:
        weight_per_item: see :func:`afzal.train.feed.weight_per_item`; None takes the batch's own.
    """
    if batch.idle:
        return [0.0] * len(method.terms)
    pairs, of_token = host_pairs(batch), torch.arange(batch.n_responses).repeat_interleave(batch.scored)
    items = len(pairs.group_of[pairs.yw_idxs].unique())
    return [
        items * weight_per_item
        if term.objective.unit == "pair" and weight_per_item is not None
        else float(unit_weights(term.objective.unit, pairs, of_token).sum())
        for term in method.terms
    ]


def pooled_statistics(model: Any, method: Method, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """For terms with a statistic: its value over the mismatched rows of all ranks, by the term's name."""
    return {
        term.name: _pooled(model, method, term, batches)
        for term in method.terms
        if term.objective.statistic is not None
    }


def _pooled(model: Any, method: Method, term: Term, batches: Sequence[Batch]) -> Tensor:
    statistic, reference = term.objective.statistic, method.reference
    if not batches:
        raise AfzalError(f"objective {term.name!r} needs responses of at least two different prompts")
    assert statistic is not None
    assert reference is not None
    with torch.no_grad():
        parts = [statistic(score(model, b), reference.score(b)) for b in batches]
    if ranks.world() > 1:
        local = [[float(x) for x in part] for part, b in zip(parts, batches, strict=True) if not b.idle]
        total, count = ranks.total([sum(column) for column in zip([0.0, 0.0], *local, strict=True)])
        return parts[0][0].new_tensor(total / count)
    total, count = (torch.stack(list(x)).double().sum() for x in zip(*parts, strict=True))  # in float64, as over ranks
    return (total / count).to(parts[0][0].dtype)


def evaluate(
    model: Any,
    method: Method,
    batches: Sequence[Batch],
    mismatched: Sequence[Batch] = (),
    carried: Carried | None = None,
) -> dict[str, float]:
    """Loss and metrics over all batches of all ranks, each one sum / count, with a 95% interval for the accuracy.

    A method that couples the batch sees all of them together. Pairs with the same prompt are not independent, so the
    interval is over prompts.

    Args:
        carried: the method's running numbers; default: those before the first update.
    """
    carried = method.start() if carried is None else carried
    tallies: Tally = {}
    answered: list[_Answered] = []
    with torch.no_grad():
        pooled = pooled_statistics(model, method, mismatched)
        for part, prompts in (_join_all_ranks if method.couples_batch else _counted)(model, method, batches):
            losses = losses_of(method, part, carried, pooled)
            of_tasks = task_metrics.losses(
                method.main.objective.unit, *losses.units, part.pairs, part.policy.response_of
            )
            add(tallies, by_term(method, losses) | losses.metrics | of_tasks)
            if losses.rewards is not None and "rewards/accuracies" in losses.metrics:
                answered.append(_answered(prompts, losses.rewards, part, method.main.objective.needs_reference))
    return _figures(method, ranks.summed(tallies), _pairs_of_all(answered), pooled)


_ROUNDING = 1e-5  # reward units


class _Answered(NamedTuple):
    """Held-out pairs, ``T`` each: the prompt, whether the pair is ordered correctly, its weight, its reward margin and
    length difference in tokens (preferred minus other response), and its task number."""

    prompts: Sequence[str]
    right: Sequence[float]
    weight: Sequence[float]
    margin: Sequence[float]
    longer: Sequence[float]
    task: Sequence[int]


class _Responses(NamedTuple):
    """Prompt and length in tokens of every response of a batch."""

    prompts: Sequence[str]
    lengths: Sequence[int]


def _answered(responses: _Responses, rewards: Tensor, scored: ScoredBatch, referenced: bool) -> _Answered:
    pairs, reference = scored.pairs, scored.reference if referenced else None
    right, weight = correct(rewards, pairs, None if reference is None else unmoved(scored.policy, reference))
    margin = rewards.double()[pairs.yw_idxs] - rewards.double()[pairs.yl_idxs]
    both: list[tuple[int, int]] = list(zip(pairs.yw_idxs.tolist(), pairs.yl_idxs.tolist(), strict=True))
    longer = [float(responses.lengths[w] - responses.lengths[k]) for w, k in both]
    prompts = [responses.prompts[w] for w, _ in both]
    tasks = pairs.task_of[pairs.yw_idxs].tolist()
    return _Answered(prompts, right.tolist(), weight.tolist(), margin.tolist(), longer, tasks)


def _pairs_of_all(answered: Sequence[_Answered]) -> _Answered:
    """The pairs of all batches and ranks."""
    rows: Any = [row for pairs in answered for row in zip(*pairs, strict=True)]
    rows = [row for part in ranks.gather_data(rows) for row in part]
    return _Answered(*zip(*rows, strict=True)) if rows else _Answered((), (), (), (), (), ())


def _counted(model: Any, method: Method, batches: Sequence[Batch]) -> Iterator[tuple[ScoredBatch, _Responses]]:
    for batch in batches:
        scored = score_batch(model, method, batch)
        if not batch.idle:
            yield scored, _responses([batch])


def _join_all_ranks(model: Any, method: Method, batches: Sequence[Batch]) -> list[tuple[ScoredBatch, _Responses]]:
    """All batches of all ranks as one, on rank 0 only."""
    local = join_batches([score_batch_or_empty(model, method, batch) for batch in batches])
    joined = join_batches(gather_batches(local))
    local_responses = _responses([batch for batch in batches if not batch.idle])
    prompts, lengths = (
        ranks.gather_data(list(local_responses.prompts)),
        ranks.gather_data(list(local_responses.lengths)),
    )
    all_responses = _Responses([key for part in prompts for key in part], [n for part in lengths for n in part])
    return [(joined, all_responses)] if ranks.leads() else []


def _responses(batches: Sequence[Batch]) -> _Responses:
    sources = [source for batch in batches for source in batch.sources]
    return _Responses([t.prompt_key for t, _ in sources], [int(t.branches[k].scored.sum()) for t, k in sources])


def _figures(method: Method, tallies: Tally, answered: _Answered, pooled: Mapping[str, Tensor]) -> dict[str, float]:
    result = task_metrics.drop_single_task(means(tallies))
    parts = {term.name: result.pop(f"loss/{term.name}", None) for term in method.terms}
    known = [term.weight * value for term in method.terms if (value := parts[term.name]) is not None]
    if known:
        result = {"loss": sum(known)} | result
    if len(parts) > 1:
        result |= {f"loss/{name}": value for name, value in parts.items() if value is not None}
    if any(answered.weight):
        low, high = share(clustered(answered.prompts, answered.right, answered.weight)).ends
        result |= {"rewards/accuracies_low": low, "rewards/accuracies_high": high}
        result |= task_metrics.accuracies(answered.prompts, answered.right, answered.weight, answered.task)
    # before training, margins are 0 up to rounding, which correlates with nothing
    known = any(abs(margin) > _ROUNDING for margin in answered.margin)
    pull = paired_correlation(answered.prompts, answered.margin, answered.longer, answered.weight) if known else None
    if pull is not None:
        low, high = pull.ends
        name = "rewards/length_correlation"
        result |= {name: pull.value, f"{name}_low": low, f"{name}_high": high}
    if method.main.objective.unit == "token" and "loss" in result:
        result["perplexity"] = math.exp(min(result["loss"], 700.0))
    for value in pooled.values():
        result["kl_estimate"] = max(0.0, float(value))
    return result


Evaluator = Callable[[int, Carried], dict[str, float]]
"""``(updates done, running numbers) -> held-out figures``."""
