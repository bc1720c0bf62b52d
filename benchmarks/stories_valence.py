"""Real data, real model: DPO on 497 story pairs by Afzal and by TRL 1.16, measured by the same code.

Both train stories260k on the same rows (beta 0.1, batch 16, 3 epochs, lr 1e-4 constant, fp32, same held-out prompts),
each in a separate process, one after the other. Then one scorer measures both: reward accuracy on the held-out pairs
(Wilson 95%), and mean summed word valence of fresh samples on held-out openings (standard error over samples).

    make peers
    .venv-trl/bin/python -m benchmarks.stories_valence ../shared/data --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

from benchmarks.sentiment.valence import by_word, lexicon

BETA, BATCH, EPOCHS, LR, TOKENS = 0.1, 16, 3, 1e-4, 48
FIGURES = ("first_loss", "train_seconds", "seconds", "cpu_seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shared", type=Path, help="the folder with derived/, models/ and annot/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--trl-worker", nargs=3, metavar=("MODEL", "ROWS", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.trl_worker:
        train_with_trl(*arguments.trl_worker, seed=arguments.seeds[0])
        return
    print(
        f"{date.today()}  {platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()}"
    )
    print("  ".join(f"{name} {version(name)}" for name in ("afzal", "trl", "torch", "transformers")))
    results = [compare(arguments.shared, seed) for seed in arguments.seeds]
    print(
        "| seed | | first loss | held-out accuracy (95%) | valence of samples | train s | process s | process CPU s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for seed, rows in zip(arguments.seeds, results, strict=True):
        for name, r in rows.items():
            print(
                f"| {seed} | {name} | {r['first_loss']:.4f} | {r['accuracy']:.3f} ({r['low']:.3f} to {r['high']:.3f}) "
                f"| {r['valence']:.2f} ± {r['valence_se']:.2f} | {r['train_seconds']:.1f} | {r['seconds']:.1f} "
                f"| {r['cpu_seconds']:.1f} |"
            )


def compare(shared: Path, seed: int) -> dict[str, dict[str, float]]:
    """Train both on the same split, and score both."""
    from afzal import data

    model = shared / "models/stories260k"
    items = data.read(shared / "derived/stories_valence_pairs.jsonl").items
    train, held_out = data.split(items, 0.2, seed)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data.write(train, work / "train.jsonl", "trl")
        data.write(held_out, work / "held_out.jsonl", "trl")
        judge = Judge(shared, work / "held_out.jsonl")
        start = judge(str(model)) | dict.fromkeys(FIGURES, 0.0) | {"first_loss": math.nan}
        trl = run_trl(model, work, seed) | judge(str(work / "trl"))
        afzal = run_afzal(model, work, seed) | judge(str(work / "afzal"))
    return {"start": start, "TRL 1.16": trl, "Afzal": afzal}


def run_afzal(model: Path, work: Path, seed: int) -> dict[str, float]:
    command = [
        sys.executable,
        "-m",
        "afzal",
        "train",
        "dpo",
        "--model",
        str(model),
        "--data",
        str(work / "train.jsonl"),
    ]
    command += ["--eval-fraction", "0", "--out", str(work / "afzal"), "--seed", str(seed), "--warmup", "0"]
    command += ["--beta", str(BETA), "--batch-size", str(BATCH), "--epochs", str(EPOCHS), "--lr", str(LR)]
    spent = timed([*command, "--lr-schedule", "constant"])
    lines = [json.loads(line) for line in (work / "afzal/metrics.jsonl").read_text().splitlines()]
    return {"first_loss": lines[0]["loss"], "train_seconds": lines[-1]["seconds"], **spent}


def run_trl(model: Path, work: Path, seed: int) -> dict[str, float]:
    worker = [sys.executable, "-m", "benchmarks.stories_valence", ".", "--seeds", str(seed)]
    spent = timed([*worker, "--trl-worker", str(model), str(work / "train.jsonl"), str(work / "trl")])
    return json.loads((work / "trl/figures.json").read_text()) | spent


def timed(command: list[str]) -> dict[str, float]:
    """Wall seconds and processor seconds of a process (user and system, which other load disturbs less)."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"seconds": seconds, "cpu_seconds": after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime}


def train_with_trl(model: str, rows: str, out: str, *, seed: int) -> None:
    import torch
    import trl
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.unk_token
    trainer = trl.DPOTrainer(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=trl.DPOConfig(
            output_dir=out,
            per_device_train_batch_size=BATCH,
            num_train_epochs=EPOCHS,
            learning_rate=LR,
            lr_scheduler_type="constant",
            beta=BETA,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            seed=seed,
        ),
        train_dataset=load_dataset("json", data_files=rows, split="train"),
        processing_class=tokenizer,
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    trainer.save_model(out)
    tokenizer.save_pretrained(out)
    first = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    Path(out, "figures.json").write_text(json.dumps({"first_loss": first, "train_seconds": seconds}))


class Judge:
    """Scores a model folder against the starting model, with the same pairs, openings and sampling every time."""

    def __init__(self, shared: Path, held_out: Path) -> None:
        from afzal import data
        from afzal.model.load import load_model, load_tokenizer
        from afzal.model.probe import choose_sharing
        from afzal.tokens import Speaker

        path = str(shared / "models/stories260k")
        self.speaker, self.reference = Speaker(load_tokenizer(path)), load_model(path)
        choose_sharing(self.reference)
        items = data.read(held_out).items
        self.trees = self.speaker.encode(items, max_tokens=512).trees
        self.valence = lexicon(shared / "annot/vader_lexicon.txt")

    def __call__(self, folder: str) -> dict[str, float]:
        import numpy as np
        import torch

        from afzal import objectives
        from afzal.generate import Sampling, sample
        from afzal.model.load import load_model
        from afzal.model.probe import choose_sharing
        from afzal.model.reference import Frozen
        from afzal.train.evaluate import evaluate
        from afzal.train.feed import Layout
        from afzal.train.method import Method

        torch.manual_seed(0)
        model = load_model(folder)
        choose_sharing(model)
        batches = Layout("shared", 8192).batches(self.trees)
        method = Method.of(objectives.get("dpo"), {"beta": BETA}, Frozen(self.reference))
        metrics = evaluate(model, method, batches)
        prompts = sorted({tuple(t.prompt.tolist()) for t in self.trees})
        drawn = sample(model, prompts, eos=[1, 2], n=8, sampling=Sampling(TOKENS), seed=1, rows_per_batch=256)
        texts = [self.speaker.continuation(prompts[s.prompt_index], s.ids.tolist()) for s in drawn]
        scores = np.array([sum(by_word(t, self.valence)) for t in texts])
        return {
            "accuracy": metrics["rewards/accuracies"],
            "low": metrics["rewards/accuracies_low"],
            "high": metrics["rewards/accuracies_high"],
            "valence": float(scores.mean()),
            "valence_se": float(scores.std(ddof=1) / math.sqrt(len(scores))),
        }


if __name__ == "__main__":
    main()
