"""A tiny model folder, a tiny preference file, and runs of them in processes that can be killed."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["afzal.recipes", "afzal.cli.train", "transformers.models.llama.modeling_llama", "helpers_tokenizers"]
)


def model_folder(path: Path, kind: str = "LlamaConfig", **overrides: Any) -> Path:
    """A folder with a random two-layer Llama over bytes, or another model, and its tokenizer."""
    import torch
    import transformers
    from helpers_tokenizers import byte_tokenizer

    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    made = getattr(transformers, kind)(**(config | overrides))
    transformers.AutoModelForCausalLM.from_config(made).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def pair_file(path: Path, n: int = 48) -> Path:
    """Pairs whose preferred answers are polite, which a tiny model can learn."""
    rng = random.Random(0)
    rows = []
    for i in range(n):
        rows.append(
            {
                "prompt": f"Q{i}: {rng.choice(['how', 'why', 'when'])} {rng.randrange(100)}?",
                "chosen": f" please {'see ' * rng.randrange(3)}{rng.randrange(10)}",
                "rejected": f" no {'way ' * rng.randrange(4)}{rng.randrange(10)}",
            }
        )
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def settings(folder: Path, out: Path, **overrides: Any) -> dict[str, Any]:
    """Settings of a run of 20 updates that takes about a second; model and data are made when missing."""
    model, data = folder / "model", folder / "pairs.jsonl"
    if not model.exists():
        model_folder(model)
    if not data.exists():
        pair_file(data)
    base = {"model": str(model), "data": str(data), "out": str(out), "batch_size": 8, "epochs": 4.0, "lr": 1e-3}
    small = {"sample_prompts": 2, "sample_tokens": 4, "eval_fraction": 0.2, "eval_every_steps": 4}
    return base | small | {"save_every_steps": 1} | overrides


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread: bytes can be compared only between runs with equal thread counts, which fix the order of sums."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def command_line(method: str, given: dict[str, Any], *more: str) -> list[str]:
    """``afzal train METHOD`` with these settings as flags; None leaves a setting out."""
    flags = [(f"--{name.replace('_', '-')}", str(value)) for name, value in given.items() if value is not None]
    return ["train", method, *(part for pair in flags for part in pair), *more]


def _run(arguments: list[str]) -> None:
    from afzal.cli import main

    with one_thread():
        raise SystemExit(main(arguments))


def start(method: str, given: dict[str, Any], *, resume: bool = False) -> Any:
    """Start the command line in a separate process, forked from a server that has already imported everything."""
    return start_command(command_line(method, given, *(["--resume"] if resume else [])))


def start_command(arguments: list[str]) -> Any:
    """Start any command line of Afzal in the same way."""
    process = _CONTEXT.Process(target=_run, args=(arguments,), daemon=True)
    process.start()
    return process


def finished(process: Any, seconds: float = 300) -> int:
    process.join(seconds)
    assert process.exitcode is not None, "the run did not end"
    return process.exitcode


def kill_at(arguments: list[str], path: Path, *, after: float = 0.0, patience: float = 300) -> int:
    """Start a command line, kill it ``after`` seconds after a file or folder appears, and return its exit code.

    The code is that of SIGKILL unless the command ended first.
    """
    process = start_command(arguments)
    while process.is_alive() and not path.exists():
        time.sleep(0.001)
    time.sleep(after)
    process.kill()
    return finished(process, patience)


def fingerprint(out: Path) -> dict[str, str]:
    """What must not depend on interruptions: weights, metrics (except times), samples."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    metrics = [{k: v for k, v in line.items() if not k.startswith("seconds")} for line in lines]
    return {
        "weights": hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest(),
        "metrics": json.dumps(metrics),
        "samples": (out / "samples.jsonl").read_text() if (out / "samples.jsonl").exists() else "",
        "losses": (out / "dropped.jsonl").read_text(),
    }


def interrupt_after(monkeypatch: Any, n: int, key: str) -> None:
    """Interrupt runs as by Ctrl+C after ``n`` logged records with ``key``, until ``monkeypatch.undo()``."""
    from afzal import runs

    seen, append = [], runs.Run.log

    def stopping(self: Any, record: dict[str, Any]) -> None:
        append(self, record)
        seen.extend(["record"] if key in record else [])
        if len(seen) == n:
            raise KeyboardInterrupt

    monkeypatch.setattr(runs.Run, "log", stopping)


def dropped_lines(prepared: Any) -> list[dict[str, Any]]:
    """The lines of ``dropped.jsonl`` for prepared data."""
    return [drop.line() for drop in prepared.dropped]
