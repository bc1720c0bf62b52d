"""Run every side in a separate process, one after the other: for GPUs, where times are stable and memory is short.

A side's process makes the updates of all shapes in one run, so it is set up once. It writes its file after each shape;
finished sides are not run again.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.dpo_step import flops, sides

THE_REST = "the rest"
_LATE = "out of time"
Segments = Mapping[str, np.ndarray]
"""Lengths of the timed updates, ``[updates, pairs, 3]``, by shape and in training order."""


class _Clock:
    """Times of consecutive shapes' updates, and the peak memory of each shape."""

    def __init__(self, names: Sequence[str], updates: int, device: torch.device, done: Callable[[str], None]) -> None:
        self.names, self.updates, self.device, self.done = names, updates, device, done
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.bytes: dict[str, dict[str, int]] = {}

    def began(self) -> None:
        if self.device.type == "cuda" and (len(self.losses) - 1) % self.updates == 0:
            torch.cuda.reset_peak_memory_stats()
        self._start = time.perf_counter()

    def ended(self, loss: float) -> None:
        self.seconds.append(time.perf_counter() - self._start)
        self.losses.append(loss)
        shapes_done, rest = divmod(len(self.losses) - 1, self.updates)  # the first update warms up
        if shapes_done and not rest:
            name = self.names[shapes_done - 1]
            if self.device.type == "cuda":
                peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
                self.bytes[name] = dict(zip(("peak_bytes", "reserved_bytes"), peaks, strict=True))
            self.done(name)

    def of(self, name: str) -> tuple[list[float], list[float]]:
        """Seconds and losses of a shape's updates."""
        first = 1 + self.names.index(name) * self.updates
        return self.seconds[first : first + self.updates], self.losses[first : first + self.updates]


def run_side(side: str, work: sides.Work, segments: Segments, check: Mapping[str, sides.Work], file: Path) -> None:
    """Time one side on all shapes in one run; the file holds the finished shapes, and why the others failed."""
    results: dict[str, Any] = {"losses": {}, "shapes": {}, "failed": {}}
    results["losses"] = {dtype: _losses(side, small)[0] for dtype, small in check.items()}
    print(f"{side}: first losses {results['losses']}", flush=True)
    loop: Any = None

    def done(name: str) -> None:
        results["shapes"][name] = _figures(side, work, segments, name, clock, loop)
        print(f"{side} on {name}: {results['shapes'][name]['pairs_per_second']:.2f} pairs/s", flush=True)
        file.write_text(json.dumps(results, indent=2) + "\n")

    clock = _Clock(list(segments), len(next(iter(segments.values()))), work.device, done)
    try:
        loop = sides.loop_of(side, work)
        loop(clock.began, clock.ended)
    except Exception as error:  # of a peer, or out of memory; the finished shapes are kept
        missing = [name for name in segments if name not in results["shapes"]]
        results["failed"] = dict.fromkeys(missing, sides.reason(error))
        print(f"{side} failed on {', '.join(missing)}: {sides.reason(error)}", flush=True)
        loop = error = None
        _clear(work.device)
    peak = flops.matmul_peak(_format(work), work.device, work.config.hidden_size)
    for figures in results["shapes"].values():
        figures["peak"] = peak
    file.write_text(json.dumps(results, indent=2) + "\n")


def _losses(side: str, work: sides.Work) -> list[float]:
    losses: list[float] = []
    sides.loop_of(side, work)(lambda: None, losses.append)
    _clear(work.device)
    return losses


def _figures(side: str, work: sides.Work, segments: Segments, name: str, clock: _Clock, loop: Any) -> dict[str, Any]:
    (seconds, losses), counts = clock.of(name), segments[name]
    first = (1 + list(segments).index(name) * clock.updates) * work.pairs
    return {
        "seconds": seconds,
        "pairs_per_second": work.pairs * len(seconds) / sum(seconds),
        "tokens_per_second": int(counts.sum()) / sum(seconds),
        "least_flops": [
            flops.minimum(part, work.config, reference_online=not sides.is_cached(side), rank=work.rank)
            for part in counts
        ],
        "executed_over_minimum": getattr(loop, "executed", lambda *_: None)(first, first + counts.size // 3),
        "losses": losses,
        "notes": list(getattr(loop, "notes", ())),
        "peak": 1.0,
        **clock.bytes.get(name, {}),
    }


def _format(work: sides.Work) -> torch.dtype:
    return torch.bfloat16 if work.in_bf16 else torch.float32


def _clear(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def gather(
    names: Sequence[str],
    parts: Path,
    command: Sequence[str],
    write: Callable[[dict[str, Any]], None],
    seconds: float | None = None,
) -> bool:
    """Run the sides that have not yet succeeded; after each, ``write`` gets the figures of all sides so far.

    Args:
        parts: folder for each side's results file and log.
        seconds: time limit for all sides together; unfinished work is left out.

    Returns:
        whether Afzal's sides made all their updates.
    """
    parts.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    until = time.monotonic() + seconds if seconds else None
    for side in names:
        file, ended = parts / f"{side}.json", parts / f"{side}.ended"
        if not ended.exists():
            why = _run([*command, "--only", side, "--out", str(file)], parts / f"{side}.log", until)
            if not why:
                ended.touch()
        else:
            why = ""
        results[side] = json.loads(file.read_text()) if file.exists() else {"losses": {}, "shapes": {}, "failed": {}}
        if why:
            print(f"{side} ended early: {why}", flush=True)
            results[side]["failed"][THE_REST] = why
        write(results)
    return all(results[side]["shapes"] and not results[side]["failed"] for side in names if side.startswith("afzal"))


def _run(command: Sequence[str], log: Path, until: float | None) -> str:
    """Run a command; returns why it failed, or "". Output goes to the log, and parts of it are then printed."""
    left = None if until is None else until - time.monotonic()
    if left is not None and left <= 0:
        return _LATE
    with log.open("w") as stream:
        try:
            done = subprocess.run(command, check=False, stdout=stream, stderr=subprocess.STDOUT, timeout=left)
        except subprocess.TimeoutExpired:
            return _LATE
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    print("\n".join(line for line in lines if line.startswith(command[-3])), flush=True)
    if done.returncode == 0:
        return ""
    print("\n".join(lines[-15:]), file=sys.stderr)
    return lines[-1][:300] if lines else f"exit code {done.returncode}"


def disagreement(losses: Mapping[str, Mapping[str, float]], tolerance: Mapping[str, float]) -> str:
    """How the sides' losses of the same pairs disagree, by format and side; "" if they agree."""
    for dtype, by_side in losses.items():
        if not by_side:
            continue
        low, high = min(by_side.values()), max(by_side.values())
        if not high - low <= tolerance[dtype] * abs(low):
            return f"the sides do not compute the same loss in {dtype}: {dict(by_side)}"
    return ""


def merged(by_side: Mapping[str, Any], shape: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """One shape's figures of all sides, in the format of the in-process benchmark; ``about`` holds shared facts."""
    sides_of = {side: f["shapes"][shape] for side, f in by_side.items() if shape in f["shapes"]}
    peak = max((f["peak"] for f in sides_of.values()), default=0.0)
    result = dict(about) | {"shape": shape, "peak": peak, "left_out": {}}
    for side, f in by_side.items():
        why = f["failed"].get(shape) or f["failed"].get(THE_REST)
        if shape not in f["shapes"] and why:
            result["left_out"][side] = why
    for side, figures in sides_of.items():
        rate = sum(figures["least_flops"]) / sum(figures["seconds"])
        result[side] = {k: v for k, v in figures.items() if k != "peak"} | {"flops_per_second": rate}
        result[side]["roofline"] = rate / peak
    return result
