"""A complete training as a user would do it: tokenizer, SFT, DPO and reports, with times, memory and held-out figures.

    python -m benchmarks.real_run --out run.json --device cuda     # at least 106 million weights, minutes on a GPU
    python -m benchmarks.real_run --out run.json --tiny            # the same, small, for a trial run

A tokenizer is trained on the texts, and a llama gets random weights; then `afzal.fit` trains from files. Stories and
pairs are real if the data folder exists, otherwise synthetic. Runs, models and reports are kept in a folder next to the
results file. Run again, the command reuses finished runs and resumes stopped ones.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.dpo_step import flops, models
from benchmarks.machine import about_run
from benchmarks.real_run.data import Material, material, write


class Size(NamedTuple):
    """The model, and how long it trains."""

    width: int
    layers: int
    heads: int
    feed_forward: int
    vocabulary: int
    stories: int
    pairs: int
    settings: dict[str, Any]


_BATCH = 32
_UPDATES = 400  # of SFT, approximately; DPO makes three passes over its pairs
FULL = Size(768, 15, 12, 2048, 8192, 6000, 2000, {"sft": {}, "dpo": {"epochs": 3}})
TINY = Size(64, 2, 4, 128, 400, 80, 40, {"sft": {"max_steps": 4}, "dpo": {"max_steps": 3}})


def main() -> None:
    options = _arguments()
    size = TINY if options.tiny else FULL
    folder = options.out.resolve().with_suffix(".runs")
    folder.mkdir(parents=True, exist_ok=True)
    corpus = material(options.shared, stories=size.stories, pairs=size.pairs)
    if options.tiny:
        corpus = Material(corpus.stories[: size.stories], corpus.pairs[: size.pairs], corpus.source)
    model = folder / "start"
    if not (model / "config.json").exists():
        start(model, size, [row["prompt"] + row["completion"] for row in corpus.stories])
    files = {"sft": write(folder / "sft.jsonl", corpus.stories), "dpo": write(folder / "dpo.jsonl", corpus.pairs)}
    figures: dict[str, Any] = {}
    for method, usual in (("sft", {"lr": 6e-4, "batch_size": 32}), ("dpo", {"lr": 2e-5, "batch_size": 32})):
        figures[method] = train(
            method, model, files[method], folder / method, {**usual, **size.settings[method]}, options
        )
        model = folder / method
        about = about_of(options, size, corpus)
        content = {"about": about, **figures, "finished": method == "dpo"}
        options.out.write_text(json.dumps(content, indent=2) + "\n")
        print(method, json.dumps(figures[method]), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="JSON file for the figures; the runs are kept next to it"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true", help="a toy model and few updates, for a trial run")
    parser.add_argument(
        "--shared", type=Path, default=Path("../shared/data"), help="data folder with real stories, if it exists"
    )
    return parser.parse_args()


def start(folder: Path, size: Size, texts: list[str]) -> None:
    """Save a llama with random weights, and a tokenizer trained on these texts (at most ``size.vocabulary`` tokens)."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size.vocabulary, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    config = models.llama(
        width=size.width,
        layers=size.layers,
        heads=size.heads,
        kv_heads=size.heads,
        feed_forward=size.feed_forward,
        vocabulary=made.get_vocab_size(),  # may be smaller than requested if there are few texts
    )
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<pad>").save_pretrained(folder)
    models.build(config, torch.device("cpu")).save_pretrained(folder)


def train(
    method: str, model: Path, data: Path, out: Path, settings: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """One run by `afzal.fit`, and its figures."""
    import afzal
    from afzal import runs

    began, before = time.perf_counter(), _is_finished(out)
    on_gpu = options.device.startswith("cuda")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    if before:
        run = runs.open_run(out)
    else:
        fixed = {"data": str(data), "out": str(out), "device": options.device, "sample_prompts": 4, "sample_tokens": 40}
        run = afzal.fit(method, model=str(model), resume=(out / "run.json").exists(), **fixed, **settings)
    evaluations, trained, facts = run.metrics("eval"), run.last("train"), run.facts()
    first, last = evaluations[0], evaluations[-1]
    figures = {
        "whole seconds": round(time.perf_counter() - began, 2),
        "loop seconds": facts["seconds"],
        "updates": facts["step"],
        "tokens per second of the loop": trained["tokens"] / facts["seconds"],
        "weights": facts["model"]["parameters"],
        "held-out loss before": first["loss"],
        "held-out loss after": last["loss"],
        "report": (out / "report.html").stat().st_size,
    }
    if "rewards/accuracies" in last:
        names = ("rewards/accuracies", "rewards/accuracies_low", "rewards/accuracies_high", "rewards/margins")
        figures |= {f"held-out {name}": last[name] for name in names}
    if on_gpu and not before:
        figures["peak bytes"] = torch.cuda.max_memory_allocated()
    return figures


def _is_finished(out: Path) -> bool:
    try:
        return json.loads((out / "run.json").read_text())["status"] == "finished"
    except (OSError, ValueError, KeyError):
        return False


def about_of(options: argparse.Namespace, size: Size, corpus: Material) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else ""
    about = about_run(
        "benchmarks.real_run", ["afzal", "torch", "transformers"], threads=os.cpu_count() or 1, device=gpu
    )
    peak = flops.stated_peak(gpu)
    more = {"material": corpus.source, "width": size.width, "layers": size.layers}
    return about | more | {"stories": len(corpus.stories), "pairs": len(corpus.pairs), "stated_peak": peak}


if __name__ == "__main__":
    main()
