"""What a second answer to one picture costs: processor time and peak memory of a forward and a backward pass.

    python -m benchmarks.media.cost --out benchmarks/results/media/cost.json

A LLaVA of 112 x 112 pixels with random weights; a question and answers of 16 tokens. Each layout has a process of its
own, so that its peak memory is its own; passes are timed in processor seconds, which other work on the machine hardly
moves.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import about_run

_LAYOUTS = {"one answer": (1, "shared"), "two answers, shared": (2, "shared"), "two, unshared": (2, "unshared")}
_ANSWER, _QUESTION = 16, 24


def measured(answers: int, sharing: Any, pictures: int, repeats: int) -> dict[str, float]:
    """Median processor seconds of a pass over ``pictures`` trees, and the process's peak memory in bytes."""
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
    return {"processor_seconds": statistics.median(seconds[1:]), "peak_bytes": peak, "tokens": batch.ids.numel()}


_SIDE, _PATCH, _IMAGE = 112, 8, 255
_PATCHES = (_SIDE // _PATCH) ** 2


def _llava() -> Any:
    import transformers as T

    sizes = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = T.CLIPVisionConfig(**sizes, image_size=_SIDE, patch_size=_PATCH, projection_dim=128)
    text = T.LlamaConfig(**sizes, vocab_size=256, num_key_value_heads=4, max_position_embeddings=2048)
    config = T.LlavaConfig(vision_config=vision, text_config=text, image_token_index=_IMAGE, vision_feature_layer=-1)
    return T.LlavaForConditionalGeneration(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = {}
    for name, (answers, sharing) in _LAYOUTS.items():
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
            found[name] = alone.submit(measured, answers, sharing, options.pictures, options.repeats).result()
    one = found["one answer"]["processor_seconds"]
    ratios = {name: values["processor_seconds"] / one for name, values in found.items()}
    about = about_run("benchmarks.media.cost", ["afzal", "torch", "transformers"], threads=1)
    said = {**about, "pictures": options.pictures, "layouts": found, "of_one_answer": ratios}
    text = json.dumps(said, indent=1) + "\n"
    if options.out is None:
        sys.stdout.write(text)
    else:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
