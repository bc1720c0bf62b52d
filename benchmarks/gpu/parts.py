"""The parts of the GPU benchmark, in order of importance: each is one command that writes one results file."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

_TINY = ("--width", "128", "--layers", "2", "--heads", "4", "--kv-heads", "2", "--vocabulary", "2000")
_TINY_STEP = (*_TINY, "--pairs", "2", "--repeats", "1")
_OWN = ("afzal", "trl")
_BEST = ("afzal-cached", "trl-best")
_SHAPES = ("hh", "tldr", "uf")  # the longest last: if memory does not suffice, the others are done
LOST_WHEN_STOPPED = 15.0  # seconds that a part reserves for writing its results


@dataclass(frozen=True, slots=True)
class Part:
    """One run of a benchmark.

    Attributes:
        name: name of its results file, without the extension.
        minutes: time limit, about twice the expected time on an H100.
        quick: whether it is part of ``--quick``.
        timed: whether it accepts ``--seconds``, and then ends in time with partial results.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    minutes: float
    quick: bool = False
    timed: bool = False


def parts(device: str, *, tiny: bool) -> list[Part]:
    """All parts for ``cuda`` or ``cpu``, the most important first; ``tiny`` uses toy sizes, for a trial run."""
    listed = [
        _step(device, tiny, "1b", "llama-3.2-1b", _SHAPES, (*_OWN, *_BEST), minutes=6, quick=True),
        _step(device, tiny, "8b-lora", "llama-3.1-8b", _SHAPES, _OWN, "lora", minutes=5, quick=True),
        Part(f"parity-{device}", "benchmarks.gpu.parity", (), 5, quick=True),
        Part(f"real-run-{device}", "benchmarks.real_run", ("--device", device, *_tiny(tiny, "--tiny")), 6, quick=True),
        Part(f"generation-1b-{device}", "benchmarks.generation", _generation(device, tiny), 4, quick=True),
        _step(device, tiny, "8b-lora-best", "llama-3.1-8b", _SHAPES, _BEST, "lora", minutes=5, quick=True),
        _step(device, tiny, "8b-full", "llama-3.1-8b", ("uf",), ("afzal-cached",), "rmsprop", minutes=4),
        _step(device, tiny, "3b-full", "llama-3.2-3b", ("uf",), ("afzal", "afzal-cached"), minutes=4),
        _step(device, tiny, "0.5b", "qwen2.5-0.5b", _SHAPES, (*_OWN, *_BEST, "plain"), minutes=7),
        _step(device, tiny, "1b-lora", "llama-3.2-1b", _SHAPES, (*_OWN, *_BEST), "lora", minutes=6),
        _step(device, tiny, "1b-more", "llama-3.2-1b", _SHAPES, ("afzal", "plain", "trl-bf16"), minutes=6),
        _step(device, tiny, "1b-long", "llama-3.2-1b", ("long",), (*_OWN, *_BEST), minutes=6),
        Part(f"growth-{device}", "benchmarks.growth", _growth(device, tiny), 5),
    ]
    if find_spec("benchmarks.attention"):
        attention = ("--device", device, "--force", *_tiny(tiny, "--tiny"))
        listed.insert(3, Part(f"attention-{device}", "benchmarks.attention", attention, 4))
    return listed


def _step(
    device: str,
    tiny: bool,
    name: str,
    model: str,
    shapes: tuple[str, ...],
    sides: tuple[str, ...],
    *how: str,
    minutes: float,
    quick: bool = False,
) -> Part:
    """The part for one DPO update on a known shape; ``how`` is empty (all weights, AdamW), ``lora`` or ``rmsprop``."""
    size = _TINY_STEP if tiny else ("--model", model, "--pairs", "2" if "long" in shapes else "16", "--repeats", "5")
    size += ("--peer-pairs", "1" if tiny or "long" in shapes else "8")  # TRL's default, since 16 would not fit
    more = ("--lora-rank", "4" if tiny else "16") if "lora" in how else ()
    more += ("--optimizer", "rmsprop") if "rmsprop" in how else ()
    chosen = ("--device", device, "--force", "--apart", "--shapes", *shapes, "--sides", *sides)
    name = f"dpo-step-{device}-{name}"
    return Part(name, "benchmarks.dpo_step", (*chosen, *size, *more), minutes, quick, timed=True)


def _generation(device: str, tiny: bool) -> tuple[str, ...]:
    common = ("--device", device, "--force", "--repeats")
    if tiny:
        few = ("--prompts", "2", "--samples", "2", "--new-tokens", "4", "--prompt-tokens", "24")
        return (*common, "1", *few, "--our-rows", "4", "--their-rows", "4", "--sizes", "128", "2", "--continuous")
    rows = ("--our-rows", "256", "512", "--their-rows", "256", "512")
    return (*common, "2", "--shape", "llama-3.2-1b", "--dtype", "bf16", *rows, "--new-tokens", "128", "--continuous")


def _growth(device: str, tiny: bool) -> tuple[str, ...]:
    sizes = ("--width", "128", "--layers", "2", "--repeats", "1", "--shrink", "16") if tiny else ()
    return ("--device", device, "--force", *(sizes or ("--width", "512", "--layers", "8", "--dtype", "bf16")))


def _tiny(tiny: bool, *arguments: str) -> tuple[str, ...]:
    return arguments if tiny else ()
