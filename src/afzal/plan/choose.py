"""A whole plan: the layout that was asked for, or the smallest one that fits, and how much more would fit in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from afzal.errors import AfzalError
from afzal.plan.hardware import Device
from afzal.plan.job import RECOMPUTE, Job, Layout, Recompute, tokens_at_once
from afzal.plan.memory import USABLE, Moment, fits, loading, peak
from afzal.plan.speed import Assumptions, Times, Traffic, executed_flops, times, traffic, updates, useful_flops
from afzal.plan.work import Lengths

_MOST_TOKENS = 1 << 20  # beyond a million tokens per forward pass nothing is looked for
_MOST_NODES = 4096


@dataclass(frozen=True, slots=True)
class Wish:
    """What the person fixed of a layout; None is left to choose. ``gpus`` is per node, ``tokens`` per forward pass."""

    nodes: int | None = None
    gpus: int | None = None
    shards: int | None = None
    tensor: int | None = None
    recompute: Recompute | None = None
    tokens: int = 8192


@dataclass(frozen=True, slots=True)
class Plan:
    """A job on a layout, and what it takes.

    Attributes:
        chosen: names of the parts of the layout that were not asked for.
        memory: the fullest moment of an update; ``loading`` is that before the first.
        fits: both moments.
        largest: tokens of the largest forward pass that fits, 0 when none does.
        executed, useful: floating-point operations of one update, with and without what is computed twice.
        updates: of the whole run.
        hours: of the whole run, without evaluation and checkpoints.
        cost: in the currency of the price per device and hour, None without one.
    """

    job: Job
    device: Device
    layout: Layout
    chosen: tuple[str, ...]
    assumed: Assumptions
    memory: Moment
    loading: Moment
    fits: bool
    largest: int
    executed: float
    useful: float
    traffic: Traffic
    times: Times
    updates: int
    hours: float
    cost: float | None


def plan(job: Job, device: Device, wish: Wish, assumed: Assumptions, *, price: float | None = None) -> Plan:
    """The plan for a job on this kind of device.

    A layout that was fixed is planned even if it does not fit; parts that were not are chosen so that as few devices
    as possible do, then for the shortest update.

    Raises:
        AfzalError: nothing fits, however many devices; or the parts of the layout contradict each other.
    """
    layout = _choose(job, device, wish, assumed)
    found = times(job, layout, device, assumed)
    n = updates(job)
    hours = (found.iteration * n / found.updates + found.before) / 3600
    names = ("nodes", "gpus", "shards", "tensor", "recompute")
    return Plan(
        job=job,
        device=device,
        layout=layout,
        chosen=tuple(name for name in names if getattr(wish, name) is None),
        assumed=assumed,
        memory=peak(job, layout, device),
        loading=loading(job, layout, device),
        fits=fits(job, layout, device),
        largest=largest_tokens(job, layout, device),
        executed=executed_flops(job, layout),
        useful=useful_flops(job),
        traffic=traffic(job, layout, device),
        times=found,
        updates=n,
        hours=hours,
        cost=None if price is None else price * hours * layout.devices,
    )


def largest_tokens(job: Job, layout: Layout, device: Device) -> int:
    """Tokens of the largest forward pass that fits, at most a million; 0 when the largest item alone does not."""
    # as if every replica had work for all of it: a batch may always be made larger
    many = replace(job, batch_size=job.lengths.items, lengths=_repeated(job, layout))
    small, large = job.lengths.longest, _MOST_TOKENS
    if not fits(many, replace(layout, tokens=small), device):
        return 0
    if fits(many, replace(layout, tokens=large), device):
        return large
    while large - small > max(1, small // 256):
        middle = (small + large) // 2
        small, large = (middle, large) if fits(many, replace(layout, tokens=middle), device) else (small, middle)
    return small


def _repeated(job: Job, layout: Layout) -> Lengths:
    """The same data so often that every replica has several of the largest forward passes in an update."""
    found = job.lengths
    times_over = max(1, round(4 * _MOST_TOKENS * layout.replicas / found.tokens))
    sums = {
        name: getattr(found, name) * times_over for name in ("items", "tokens", "scored", "keys", "products", "dense")
    }
    return replace(found, **sums)


def _choose(job: Job, device: Device, wish: Wish, assumed: Assumptions) -> Layout:
    tried: Layout | None = None
    if alone := one_device_only(job):
        if (wish.nodes or 1) * (wish.gpus or 1) > 1:
            raise AfzalError(f"{alone} cannot be trained over several devices", remedy="--nodes 1 --gpus 1")
        device, wish = replace(device, per_node=1), replace(wish, gpus=1)
    for nodes, gpus in _machines(device, wish):
        fitting = []
        for layout in layouts(job, wish, nodes, gpus):
            tried = layout
            if fits(job, layout, device):
                fitting.append(layout)
        if fitting:
            return min(fitting, key=lambda layout: _order(job, layout, device, assumed))
    if tried is None:
        raise AfzalError(
            f"no layout of {_said(wish)} exists",
            why="gpus must be a multiple of tensor, and nodes x gpus a multiple of shards x tensor; "
            "tensor divides the heads of the model",
            remedy="leave --shards and --tensor out to have them chosen",
        )
    if wish.nodes is None:
        raise does_not_fit(job, tried, device)
    return tried


def one_device_only(job: Job) -> str:
    """What of a job ``afzal train`` refuses over several ranks, so that it is planned for one device; or nothing."""
    if job.method.alone:
        return f"method={job.method.name}"
    return "a quantised model" if job.frozen != "dtype" else ""


def layouts(job: Job, wish: Wish, nodes: int, gpus: int) -> Iterator[Layout]:
    """Every layout of these machines that the wish allows, from the plainest to the most divided."""
    for tensor in [wish.tensor] if wish.tensor else [1]:
        if gpus % tensor or job.shape.heads % tensor or job.shape.kv_heads % tensor:
            continue
        replicas = nodes * gpus // tensor
        for shards in [wish.shards] if wish.shards else sorted({1, replicas}):  # as train cuts: whole, or over all
            if replicas % shards:
                continue
            for recompute in RECOMPUTE if wish.recompute is None else (wish.recompute,):
                yield Layout(nodes, gpus, shards, tensor, recompute, wish.tokens)


def does_not_fit(job: Job, layout: Layout, device: Device) -> AfzalError:
    """What to say when memory is short: by how much, the largest term, and the flag that makes it smaller."""
    moment, start = peak(job, layout, device), loading(job, layout, device)
    if start.total > USABLE * device.memory >= moment.total:
        alone = layout.shards * layout.tensor == 1
        return AfzalError(
            f"{start.total / 1e9:.1f} GB per device are needed to load the model, and "
            f"{USABLE * device.memory / 1e9:.1f} GB of {device.name} are available",
            where=job.shape.name,
            why="one device loads all of it in float32" if alone else "a share of it, and one gathered block",
            remedy="a device with more memory, a smaller model, or "
            + ("several devices, of which each reads its own pieces" if alone else "more devices"),
        )
    term, size = max(moment.terms.items(), key=lambda item: item[1])
    return AfzalError(
        f"{moment.total / 1e9:.1f} GB per device are needed, and {USABLE * device.memory / 1e9:.1f} GB "
        f"of {device.name} are available",
        where=f"{job.shape.name} on {layout.nodes} x {layout.gpus}, {layout.shards} shards, tensor {layout.tensor}",
        why=f"the largest term is {term}: {size / 1e9:.1f} GB",
        remedy=_remedy(term, job, layout, device),
    )


def _remedy(term: str, job: Job, layout: Layout, device: Device) -> str:
    more = "more --shards over more --nodes or --gpus" if device.per_node > 1 else "a machine with more memory"
    if term == "keys and values":
        return "shorter answers (--response-tokens), or fewer for each prompt (--responses)"
    if term == "reward model":
        return "a smaller --reward-model, or one on a server (--reward-model function)"
    if term == "value model":
        return f"--value shared, or {more}"
    if term in ("activations", "logits"):
        fewer = f"--tokens-per-forward below {layout.tokens}"
        if tokens_at_once(job, layout) <= job.lengths.longest:
            fewer = "shorter items (--max-tokens), or --tensor, since one item is a forward pass already"
        return f"{fewer}, or --checkpointing full" if layout.recompute != "full" else fewer
    if term == "reference":
        return f"--reference cached, or {more}"
    if term == "gathered" and job.method.online:
        return "a device with more memory, or --lora-rank 16: while answers are written every device holds all models"
    if term == "gathered":
        return "--tensor, which makes the gathered layers smaller"
    if job.rank:
        return more if job.frozen == "nf4" else f"{more}, or --frozen-weights nf4"
    return f"--lora-rank 16, or {more}"


def _order(job: Job, layout: Layout, device: Device, assumed: Assumptions) -> tuple[float, int, int]:
    """Shortest update first (to a thousandth), then the plainest layout."""
    seconds = times(job, layout, device, assumed).iteration
    return (float(f"{seconds:.3g}"), layout.tensor, layout.shards)


def _machines(device: Device, wish: Wish) -> Iterator[tuple[int, int]]:
    """Nodes and devices per node, from few devices to many."""
    if wish.nodes is not None:
        yield from ((wish.nodes, g) for g in ([wish.gpus] if wish.gpus else [device.per_node]))
        return
    if wish.gpus is None:
        yield from ((1, g) for g in _powers(device.per_node)[:-1])
    gpus = wish.gpus or device.per_node
    most = _MOST_NODES if device.per_node > 1 else 1
    yield from ((n, gpus) for n in _powers(most))


def _powers(n: int) -> list[int]:
    """1, 2, 4, ... that divide ``n``, and ``n`` itself."""
    found = [1 << k for k in range(n.bit_length()) if n % (1 << k) == 0]
    return found if found[-1] == n else [*found, n]


def _said(wish: Wish) -> str:
    given = {name: getattr(wish, name) for name in ("nodes", "gpus", "shards", "tensor")}
    return ", ".join(f"{name} {value}" for name, value in given.items() if value is not None) or "these machines"
