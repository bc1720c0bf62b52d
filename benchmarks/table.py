"""Build README.md's speed figures and benchmarks/README.md from the files in benchmarks/results.

    python -m benchmarks.table            # after a benchmark has written its JSON there with --out

A test compares both files with this module's output, so no figure in them is typed by hand.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.dpo_step import table as dpo_step
from benchmarks.dpo_step.table import heading
from benchmarks.methods_step import table as methods_step

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"


class Figures(NamedTuple):
    """A results file: its name without the extension, and its content."""

    name: str
    content: Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder with the JSON files")
    figures = read(parser.parse_args().results)
    readme = ROOT / "README.md"
    readme.write_text(replaced(readme.read_text(encoding="utf-8"), claim(figures)), encoding="utf-8")
    (ROOT / "benchmarks/README.md").write_text(page(figures), encoding="utf-8")


def read(folder: Path) -> list[Figures]:
    """All results files of a folder: the training step first, known shapes in order."""
    figures = [Figures(path.stem, json.loads(path.read_text())) for path in folder.glob("*.json")]
    return sorted(figures, key=lambda f: (not f.name.startswith("dpo-step"), _device(f.name), _place(f.name), f.name))


def replaced(text: str, block: str) -> str:
    """Replace the text between the two markers by ``block``.

    Raises:
        ValueError: a marker is missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN} ... {END} in the text")
    return f"{before}{begin}\n{block}\n{end}{after}"


def claim(figures: Sequence[Figures]) -> str:
    """The README's claim about speed: the range over the rows of :func:`summary`."""
    rows = [line.split(" | ") for line in summary(figures).splitlines() if "x |" in line]
    peer, best = ([float(row[k].partition("x")[0]) for row in rows if "x" in row[k]] for k in (3, 4))
    if not peer or not best:
        return "Speed: no figures have been taken yet."
    sentence = (
        f"**Speed.** At equal losses, one DPO update is {min(peer):g} to {max(peer):g} times as fast as TRL's, and"
    )
    sentence += f" {min(best):g} to {max(best):g} times\nas fast as TRL's at its best settings (CPUs,"
    return sentence + f" {len(rows)} shapes, number formats and machines; [all figures](benchmarks/README.md))."


def summary(figures: Sequence[Figures]) -> str:
    """The speed of one DPO update relative to each peer, one row per machine and shape."""
    steps = [f for f in figures if f.name.startswith("dpo-step")]
    if not steps:
        return "No figures have been taken yet."
    lines: list[str] = []
    for machine, files in _by_machine(steps).items():
        lines += [
            *([""] if lines else []),
            f"{machine}:",
            "",
            "| shape (prompt + response tokens) | weights | pairs/s | vs. TRL | vs. TRL at its best "
            "| vs. a plain loop | of the matmul peak | executed / minimum |",
            "|---|---|---|---|---|---|---|---|",
            *_summary_rows(files),
        ]
    return "\n".join(lines)


def page(figures: Sequence[Figures]) -> str:
    """benchmarks/README.md: every figure with its hardware, versions, date and command."""
    sections = [f"## {f.name}\n\n{_section(f).rstrip()}\n" for f in figures]
    return "\n".join([_INTRODUCTION, f"## One DPO update\n\n{summary(figures)}\n", *sections])


def growth(content: Mapping[str, Any]) -> str:
    """Table of time and memory as each part of an update grows, and the cost of 4 responses per prompt."""
    about = content["about"]
    lines = [
        heading(about),
        f"Width {about['width']}, {about['layers']} layers; matmul peak {content['peak'] / 1e9:.0f} GFLOP/s.",
        "",
        "| varied | value | seconds | kept for backward | least work | work / time, share of peak |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {f['varied']} | {f['value']} | {f['seconds']:.3f} | {f['kept_bytes'] / 1e6:.0f} MB "
        f"| {f['flops'] / 1e9:.1f} GFLOP | {f['share']:.0%} |"
        for f in content["rows"]
    ]
    groups = content["groups"]
    sentence = f"4 responses per prompt cost {groups['k4_in_pair_steps']:.2f} times a pair; two pairs would cost 2."
    return "\n".join([*lines, "", sentence])


def startup(content: Mapping[str, Any]) -> str:
    """The processor time of commands."""
    lines = [heading(content["about"]), "| command | CPU seconds (median, lowest to highest) |", "|---|---|"]
    for name, times in content["processor_seconds"].items():
        low, high = min(times["seconds"]), max(times["seconds"])
        lines.append(f"| {name} | {times['median']:.2f} ({low:.2f} to {high:.2f}) |")
    return "\n".join(lines)


def generation(content: Mapping[str, Any]) -> str:
    """Table of each side's tokens per second."""
    about = content["about"]
    ends = f"; any of {about['ends']} tokens ends a sample" if about.get("ends") else ""
    lines = [heading(about), f"{about['model']}{ends}.\n", "| side | tokens/s |", "|---|---|"]
    lines += [f"| {side} | {rate:.0f} |" for side, rate in content["tokens_per_second"].items()]
    ratios = ", ".join(f"{ratio:.2f} in {what} time" for what, ratio in content["ratio"].items())
    return "\n".join([*lines, "", f"Ratio of the best of each: {ratios}."])


def plain(content: Mapping[str, Any]) -> str:
    """Table of all figures by name, for results without a special table."""
    rows = [f"| {name} | {value} |" for name, value in _leaves({k: v for k, v in content.items() if k != "about"})]
    return "\n".join([heading(content["about"]), "| name | figure |", "|---|---|", *rows])


_KINDS = {
    "dpo-step": lambda content: dpo_step.markdown(content["about"], content["shapes"]),
    "methods-step": methods_step.markdown,
    "growth": growth,
    "startup": startup,
    "asking": startup,
    "aggregating": startup,
    "verdicts": startup,
    "generation": generation,
}

_INTRODUCTION = """# Benchmarks

Generated by `python -m benchmarks.table` from the files in `benchmarks/results`. Every section names hardware,
versions, date and the command that repeats it. Benchmarks refuse to run on a busy machine unless `--force` is given.

| command | what it measures |
|---|---|
| `make bench` | the next two: Afzal compared with TRL |
| `python -m benchmarks.dpo_step` | one DPO update by Afzal, TRL and a plain loop |
| `python -m benchmarks.methods_step` | the same for SFT, reward model, KTO, ORPO, SimPO, RLOO, GRPO, online DPO, PPO |
| `make bench-gpu` | all of it on a CUDA GPU: `python -m benchmarks.gpu --help` |
| `python -m benchmarks.attention` | attention kernels for trees on a GPU, and whether each is correct |
| `python -m benchmarks.growth` | how time and memory grow with lengths, responses, prompts and vocabulary |
| `python -m benchmarks.large_model` | memory of each of two ranks while a large sharded model is loaded |
| `python -m benchmarks.ranks` | memory of each of two ranks, CPU time and wall-clock time of an update |
| `python -m benchmarks.startup` | CPU time of `afzal --help` and `afzal check` |
| `python -m benchmarks.asking` | CPU time of `afzal ask` on 10,000 pairs |
| `python -m benchmarks.aggregating` | CPU time of aggregating 75,200 votes and scores of ten people |
| `python -m benchmarks.generation` | sampling against `transformers.generate` |
| `python -m benchmarks.annotate` | the annotation page: simultaneous votes of many people, start-up time |
| `python -m benchmarks.objectives_lab OUT` | objectives, measured exactly: [results](results/lab/objectives-lab.md) |
| `python -m benchmarks.ordering OUT` | methods at equal KL, measured exactly: [results](results/lab/ordering.md) |
| `python -m benchmarks.sentiment OUT` | a real model, a known reward: [results](results/sentiment/sentiment.md) |
| `make people` | from votes to a better model: [results](results/people/people.md) |
| `make media` | images and sounds with known truth: SFT, then DPO and MPO: [results](results/media/media.md) |
| `python -m benchmarks.media.cost` | the cost of a second answer to one image |
| `python -m benchmarks.judging` | judges: [results](results/judging/judging.md); `--speed`: many verdicts |
| `python -m benchmarks.coverage` | coverage of 95% intervals: [results](results/coverage/coverage.md) |
| `python -m benchmarks.real_run --out FILE` | a complete training: tokenizer, SFT, DPO, reports |

Sides of the training step: *afzal* and *trl* with their default settings, reference online; *plain* is a hand-written
padded loop over `transformers`; *trl-best* recomputes nothing and uses precomputed reference log-probs, with rows
grouped by length, and *afzal-cached* does the same. Before anything is timed, all sides must agree on the loss (1e-5
in float32). The share of the matmul peak is the least work that gives the exact result, divided by the time and by
the speed of a plain matrix product in the same run. Executed / minimum is the additional work due to padding and
masks.

In `benchmarks.methods_step` each side is a process that runs `afzal.fit` or TRL's trainer. The sides of a method take
turns, update by update, on the same rows. Times are measured between two updates, so they exclude imports and set-up;
the first update of a side is not timed. CPU seconds are user plus system time; peak memory is the largest
resident set of the process. *TRL* recomputes activations, which is its default; *TRL at its best* recomputes nothing,
and its SFT packs rows without padding. TRL splits updates of more than 8 items into passes of 8, its default.
References are computed online on all sides. KTO starts from a policy that differs from its reference, so that its
first loss is informative.

Online DPO by Afzal is `afzal iterate --preset online`. Its update is a complete round, from one round's optimiser
step to the next one's: model and page are written, the model is loaded again, answers are sampled, scored and paired.
TRL 1.16 has no PPO, so its peer is a plain loop (`benchmarks/methods_step/plain.py`): `generate` with its cache on
left-padded prompts, logits of full rows, generalised advantages, clipped updates of policy and value model. One
update of PPO is an iteration with equally many passes on both sides. These two use given answers in their first
update, so that first losses can be compared. A test compares policy and value losses pass by pass (1e-4 in float32),
and the loss of online DPO after an update.

On a GPU every side has a separate process and makes the updates of all shapes in one run; MFU is the same least work
over the vendor's stated rate for dense bf16. Weights are random, in the shapes of known models. TRL has float32
weights under bf16 autocast, which is the same computation as Afzal's; *trl-bf16* keeps weights and optimiser in bf16,
which is less work and loses small updates. Peers use 8 pairs per forward pass, TRL's default, of 16 per update; Afzal
splits its updates by tokens. For the time budget, the order of the parts, and how a stopped run resumes: `python -m
benchmarks.gpu --help`.
"""


def _section(figures: Figures) -> str:
    kind = next((kind for kind in _KINDS if figures.name.startswith(kind)), "")
    return _KINDS.get(kind, plain)(figures.content)


def _by_machine(files: Sequence[Figures]) -> dict[str, list[Figures]]:
    """Group files by machine, date, dtype and versions; the title includes a peer's version if any file has it."""
    groups: dict[tuple[Any, ...], list[Figures]] = {}
    for file in files:
        about = file.content["about"]
        versions = tuple(about["versions"].get(name) for name in ("afzal", "torch", "transformers"))
        key = (about["date"], about["device"], about["threads"], about["dtype"], versions)
        groups.setdefault(key, []).append(file)
    return {_machine(files): files for files in groups.values()}


def _machine(files: Sequence[Figures]) -> str:
    about = files[0].content["about"]
    versions = {name: number for file in files for name, number in file.content["about"]["versions"].items()}
    numbers = [f"{name} {number}" for name, number in versions.items() if name != "python"]
    return ", ".join([about["date"], about["device"], dpo_step.threads(about), *numbers, about["dtype"]])


def _summary_rows(files: Sequence[Figures]) -> Iterator[str]:
    """One row per shape, model and adapter; a row's sides may come from several files."""
    merged: dict[tuple[str, int, int], dict[str, Any]] = {}
    for file in files:
        about = file.content["about"]
        for r in file.content["shapes"]:
            merged.setdefault((r["shape"], about["parameters"], about.get("rank", 0)), {}).update(r)
    for (shape, weights, rank), r in sorted(merged.items(), key=lambda entry: (*entry[0][1:], _place(entry[0][0]))):
        ours = r.get("afzal") or r.get("afzal-cached")
        if ours is None:
            continue
        peers = (dpo_step.ratio(r.get(side, {}), spread=False) or "-" for side in ("trl", "trl-best", "plain"))
        prompt, response = r["mean"][0], sum(r["mean"][1:]) / 2
        size = f"{weights / 1e6:.0f} M" + (f", LoRA {rank}" if rank else "")
        yield (
            f"| {_TITLES.get(shape, shape)} ({prompt:.0f} + {response:.0f}) | {size} "
            f"| {ours['pairs_per_second']:.2f} | {' | '.join(peers)} "
            f"| {dpo_step.of_peak(ours)} | {dpo_step.shown(ours['executed_over_minimum'], '.3f')} |"
        )


_TITLES = {"hh": "HH-RLHF", "tldr": "TL;DR", "uf": "UltraFeedback", "long": "long context"}


def _device(name: str) -> str:
    return next((part for part in name.split("-") if part in ("cpu", "cuda")), "")


def _place(name: str) -> int:
    order = (*_TITLES, "wide")
    return next((order.index(part) for part in name.split("-") if part in order), len(order))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path and text of every value in a nested object."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, f"{path} {name}".strip())
    elif isinstance(value, list):
        yield path, ", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in value)
    else:
        yield path, f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
