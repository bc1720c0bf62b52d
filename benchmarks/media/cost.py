"""Cost of a second answer to one picture: processor time and peak memory of a forward and a backward pass.

    python -m benchmarks.media.cost --out benchmarks/results/media/cost.json

A LLaVA with random weights reads pictures of 112 x 112 pixels as 196 tokens; questions have 24 tokens, answers 16.
Every layout runs in separate processes, so its peak memory can be measured. Layouts take turns, and passes are timed in
processor seconds, so other work on the machine hardly affects the ratios.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import about_run

_LAYOUTS = {
    "one answer": (1, "shared"),
    "two answers, shared": (2, "shared"),
    "two answers, unshared": (2, "unshared"),
}
_ANSWER, _QUESTION = 16, 24


def measured(answers: int, sharing: Any, pictures: int, repeats: int) -> dict[str, Any]:
    """Processor seconds of each pass over ``pictures`` trees, and the process's peak memory in bytes."""
    import torch

    from afzal.model.logprobs import score
    from afzal.model.probe import choose_sharing
    from afzal.tokens.batch import collate
    from afzal.tokens.tree import tree

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = _llava()
    if sharing == "shared":
        choose_sharing(model)
    rng = np.random.default_rng(0)
    trees = []
    for k in range(pictures):
        question = [_IMAGE] * _PATCHES + rng.integers(1, 250, _QUESTION).tolist()
        trees.append(tree(str(k), question, rng.integers(1, 250, (answers, _ANSWER)).tolist()))
    batch = collate(trees, sharing)
    shown = pictures * (1 if sharing == "shared" else answers)
    batch.media["pixel_values"] = torch.randn(shown, 3, _SIDE, _SIDE)
    seconds = []
    for _ in range(repeats + 1):
        began = time.process_time()
        score(model, batch).logps.sum().backward()
        seconds.append(time.process_time() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"processor_seconds": seconds[1:], "peak_bytes": peak, "tokens": batch.ids.numel()}


_SIDE, _PATCH, _IMAGE = 112, 8, 255
_PATCHES = (_SIDE // _PATCH) ** 2


def _llava() -> Any:
    import transformers as T

    sizes = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = T.CLIPVisionConfig(**sizes, image_size=_SIDE, patch_size=_PATCH, projection_dim=128)
    text = T.LlamaConfig(**sizes, vocab_size=256, num_key_value_heads=4, max_position_embeddings=2048)
    config = T.LlavaConfig(vision_config=vision, text_config=text, image_token_index=_IMAGE, vision_feature_layer=-1)
    return T.LlavaForConditionalGeneration(config)


def _alone(name: str, pictures: int, repeats: int) -> dict[str, Any]:
    """:func:`measured` of a layout in a fresh process.

    A plain command instead of a process pool: pool processes first load the caller's main module, and die silently if
    that is not a file (a script on standard input).
    """
    command = [sys.executable, "-m", "benchmarks.media.cost", "--pictures", str(pictures), "--repeats", str(repeats)]
    done = subprocess.run([*command, "--layout", name], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: the process ended with status {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout)


def rows(pictures: int, repeats: int, rounds: int) -> dict[str, dict[str, float]]:
    """By layout, the median seconds of a pass over all rounds, the largest peak, and the tokens per pass."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in _LAYOUTS}
    for _ in range(rounds):
        for name, known in runs.items():
            known.append(_alone(name, pictures, repeats))
    return {
        name: {
            "processor_seconds": statistics.median(s for run in known for s in run["processor_seconds"]),
            "peak_bytes": max(run["peak_bytes"] for run in known),
            "tokens": known[0]["tokens"],
        }
        for name, known in runs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=4, help="trees per pass")
    parser.add_argument("--repeats", type=int, default=5, help="timed passes per process, after one warm-up pass")
    parser.add_argument("--rounds", type=int, default=3, help="processes per layout")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--layout", choices=list(_LAYOUTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.layout:
        print(json.dumps(measured(*_LAYOUTS[options.layout], options.pictures, options.repeats)))
        return
    layouts = rows(options.pictures, options.repeats, options.rounds)
    one = layouts["one answer"]["processor_seconds"]
    ratios = {name: values["processor_seconds"] / one for name, values in layouts.items()}
    about = about_run("benchmarks.media.cost", ["afzal", "torch", "transformers"], threads=1)
    size = {"pictures": options.pictures, "repeats": options.repeats, "rounds": options.rounds}
    text = json.dumps({**about, **size, "layouts": layouts, "of_one_answer": ratios}, indent=1) + "\n"
    if options.out is None:
        sys.stdout.write(text)
    else:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
