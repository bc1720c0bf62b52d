"""Make a complete plan: the requested layout or the smallest one that fits, and the largest pass that fits in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from afzal.errors import AfzalError
from afzal.plan.flops import Lengths
from afzal.plan.hardware import Device
from afzal.plan.job import RECOMPUTE, Job, Layout, Recompute, tokens_at_once
from afzal.plan.memory import USABLE, Moment, fits, loading, peak
from afzal.plan.speed import Assumptions, Times, Traffic, executed_flops, times, traffic, updates, useful_flops

_MOST_TOKENS = 1 << 20  # the search for the largest forward pass ends at a million tokens
_MOST_NODES = 4096


@dataclass(frozen=True, slots=True)
class LayoutRequest:
    """The fixed parts of a layout; None leaves a part open. ``gpus`` is per node, ``tokens`` per forward pass."""

    nodes: int | None = None
    gpus: int | None = None
    shards: int | None = None
    tensor: int | None = None
    recompute: Recompute | None = None
    tokens: int = 8192


@dataclass(frozen=True, slots=True)
class Plan:
    """A job on a layout, and the resources it needs.

    Attributes:
        chosen: names of the parts of the layout that were chosen here.
        memory: the moment of an update with the highest memory use; ``loading`` is the moment before the first update.
        fits: whether both moments fit.
        largest: tokens of the largest forward pass that fits, 0 if none does.
        executed, useful: floating-point operations of one update, with and without recomputation.
        updates: number of updates of the entire run.
        hours: duration of the entire run, without evaluation and checkpoints.
        cost: in the currency of the price per device-hour; None without a price.
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


def plan(job: Job, device: Device, request: LayoutRequest, assumed: Assumptions, *, price: float | None = None) -> Plan:
    """The plan for a job on this kind of device.

    Fixed parts of the layout are kept even if the job does not fit. The others are chosen for the fewest devices, then
    for the shortest update.

    Raises:
        AfzalError: no number of devices is enough, or the parts of the layout contradict each other.
    """
    layout = _choose(job, device, request, assumed)
    timing = times(job, layout, device, assumed)
    n = updates(job)
    hours = (timing.iteration * n / timing.updates + timing.before) / 3600
    names = ("nodes", "gpus", "shards", "tensor", "recompute")
    return Plan(
        job=job,
        device=device,
        layout=layout,
        chosen=tuple(name for name in names if getattr(request, name) is None),
        assumed=assumed,
        memory=peak(job, layout, device),
        loading=loading(job, layout, device),
        fits=fits(job, layout, device),
        largest=largest_tokens(job, layout, device),
        executed=executed_flops(job, layout),
        useful=useful_flops(job),
        traffic=traffic(job, layout, device),
        times=timing,
        updates=n,
        hours=hours,
        cost=None if price is None else price * hours * layout.devices,
    )


def largest_tokens(job: Job, layout: Layout, device: Device) -> int:
    """Tokens of the largest forward pass that fits, at most a million; 0 if the largest item alone does not."""
    # as if every replica had enough work to fill it: a batch can always be made larger
    full_job = replace(job, batch_size=job.lengths.items, lengths=_repeated(job, layout))
    small, large = job.lengths.longest, _MOST_TOKENS
    if not fits(full_job, replace(layout, tokens=small), device):
        return 0
    if fits(full_job, replace(layout, tokens=large), device):
        return large
    while large - small > max(1, small // 256):
        middle = (small + large) // 2
        small, large = (middle, large) if fits(full_job, replace(layout, tokens=middle), device) else (small, middle)
    return small


def _repeated(job: Job, layout: Layout) -> Lengths:
    """The same data repeated until every replica has several of the largest forward passes in an update."""
    lengths = job.lengths
    times_over = max(1, round(4 * _MOST_TOKENS * layout.replicas / lengths.tokens))
    sums = {
        name: getattr(lengths, name) * times_over for name in ("items", "tokens", "scored", "keys", "products", "dense")
    }
    return replace(lengths, **sums)


def _choose(job: Job, device: Device, request: LayoutRequest, assumed: Assumptions) -> Layout:
    last_layout: Layout | None = None
    if part := one_device_only(job):
        if (request.nodes or 1) * (request.gpus or 1) > 1:
            raise AfzalError(f"{part} cannot be trained over several devices", remedy="--nodes 1 --gpus 1")
        device, request = replace(device, per_node=1), replace(request, gpus=1)
    for nodes, gpus in _machines(device, request):
        fitting = []
        for layout in layouts(job, request, nodes, gpus):
            last_layout = layout
            if fits(job, layout, device):
                fitting.append(layout)
        if fitting:
            return min(fitting, key=lambda layout: _order(job, layout, device, assumed))
    if last_layout is None:
        raise AfzalError(
            f"no layout of {_fixed_parts(request)} exists",
            why="gpus must be a multiple of tensor, and nodes x gpus a multiple of shards x tensor; "
            "tensor divides the heads of the model",
            remedy="leave --shards and --tensor out to have them chosen",
        )
    if request.nodes is None:
        raise does_not_fit(job, last_layout, device)
    return last_layout


def one_device_only(job: Job) -> str:
    """The part of a job that ``afzal train`` refuses on several ranks, so it is planned for one device; "" if none."""
    if job.method.alone:
        return f"method={job.method.name}"
    return "a quantised model" if job.frozen != "dtype" else ""


def layouts(job: Job, request: LayoutRequest, nodes: int, gpus: int) -> Iterator[Layout]:
    """All layouts of these machines that the wish allows, from the least to the most sharded."""
    for tensor in [request.tensor] if request.tensor else [1]:
        if gpus % tensor or job.shape.heads % tensor or job.shape.kv_heads % tensor:
            continue
        replicas = nodes * gpus // tensor
        # as in training: unsharded, or over all
        for shards in [request.shards] if request.shards else sorted({1, replicas}):
            if replicas % shards:
                continue
            for recompute in RECOMPUTE if request.recompute is None else (request.recompute,):
                yield Layout(nodes, gpus, shards, tensor, recompute, request.tokens)


def does_not_fit(job: Job, layout: Layout, device: Device) -> AfzalError:
    """The error for insufficient memory: by how much, the largest term, and the flag that reduces it."""
    moment, start = peak(job, layout, device), loading(job, layout, device)
    if start.total > USABLE * device.memory >= moment.total:
        unsharded = layout.shards * layout.tensor == 1
        return AfzalError(
            f"{start.total / 1e9:.1f} GB per device are needed to load the model, and "
            f"{USABLE * device.memory / 1e9:.1f} GB of {device.name} are available",
            where=job.shape.name,
            why="one device loads the full model in float32"
            if unsharded
            else "each loads a share and one gathered block",
            remedy="a device with more memory, a smaller model, or "
            + ("several devices, each of which reads its own shard" if unsharded else "more devices"),
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
            fewer = "shorter items (--max-tokens), or --tensor, since one item already fills a forward pass"
        return f"{fewer}, or --checkpointing full" if layout.recompute != "full" else fewer
    if term == "reference":
        return f"--reference cached, or {more}"
    if term == "gathered" and job.method.online:
        return "a device with more memory, or --lora-rank 16: during sampling every device holds all models"
    if term == "gathered":
        return "--tensor, which makes the gathered layers smaller"
    if job.rank:
        return more if job.frozen == "nf4" else f"{more}, or --frozen-weights nf4"
    return f"--lora-rank 16, or {more}"


def _order(job: Job, layout: Layout, device: Device, assumed: Assumptions) -> tuple[float, int, int]:
    """Sort key: the shortest update (to a thousandth), then the least sharded layout."""
    seconds = times(job, layout, device, assumed).iteration
    return (float(f"{seconds:.3g}"), layout.tensor, layout.shards)


def _machines(device: Device, request: LayoutRequest) -> Iterator[tuple[int, int]]:
    """Pairs of nodes and devices per node, from few devices to many."""
    if request.nodes is not None:
        yield from ((request.nodes, g) for g in ([request.gpus] if request.gpus else [device.per_node]))
        return
    if request.gpus is None:
        yield from ((1, g) for g in _powers(device.per_node)[:-1])
    gpus = request.gpus or device.per_node
    most_nodes = _MOST_NODES if device.per_node > 1 else 1
    yield from ((n, gpus) for n in _powers(most_nodes))


def _powers(n: int) -> list[int]:
    """The powers of two that divide ``n``, and ``n`` itself."""
    powers = [1 << k for k in range(n.bit_length()) if n % (1 << k) == 0]
    return powers if powers[-1] == n else [*powers, n]


def _fixed_parts(request: LayoutRequest) -> str:
    fixed = {name: getattr(request, name) for name in ("nodes", "gpus", "shards", "tensor")}
    return ", ".join(f"{name} {value}" for name, value in fixed.items() if value is not None) or "these machines"
