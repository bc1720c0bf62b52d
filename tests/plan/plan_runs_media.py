"""DPO on pairs of answers to images, in a separate process: peak memory, less the memory in use before.

    python plan_runs_media.py '{"items": 8, ...}' FOLDER

Makes the model and the data in FOLDER and prints the bytes. The tests compare them with the plan of that folder.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from plan_runs import bytes_of, peak_from_here, quiet

sys.path.insert(0, str(Path(__file__).parents[1]))


@dataclass(frozen=True)
class Case:
    """A LLaVA: a llama, and a CLIP tower whose patches are 14 pixels wide."""

    width: int = 640
    ff: int = 1728
    layers: int = 8
    heads: int = 10
    kv_heads: int = 2
    tower: int = 512
    tower_layers: int = 6
    pixels: int = 112
    items: int = 8
    rank: int = 0
    dtype: str = "fp32"


def make(folder: Path, case: Case) -> None:
    """The model with its processor, and pairs of long answers to images of noise."""
    import numpy as np
    import transformers as T
    from helpers_multimodal import text_settings, tokenizer
    from PIL import Image

    tok = tokenizer("image", "<image>", "<image>")
    size = {"height": case.pixels, "width": case.pixels}
    images = T.CLIPImageProcessorPil(size={"shortest_edge": case.pixels}, crop_size=size)
    strategy = {"patch_size": 14, "vision_feature_select_strategy": "default"}
    processor = T.LlavaProcessor(
        images, tok, image_token="<image>", num_additional_image_tokens=1, chat_template=tok.chat_template, **strategy
    )
    vision = T.CLIPVisionConfig(
        hidden_size=case.tower,
        intermediate_size=4 * case.tower,
        num_hidden_layers=case.tower_layers,
        num_attention_heads=8,
        image_size=case.pixels,
        patch_size=14,
    )
    text = text_settings(len(tok)) | {
        "hidden_size": case.width,
        "intermediate_size": case.ff,
        "num_hidden_layers": case.layers,
        "num_attention_heads": case.heads,
        "num_key_value_heads": case.kv_heads,
    }
    config = T.LlavaConfig(
        vision_config=vision,
        text_config=T.LlamaConfig(**text),
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    T.LlavaForConditionalGeneration(config).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    draw, rows = np.random.default_rng(0), []
    words = lambda: "".join(draw.choice(list("abcdefgh"), 160))  # noqa: E731
    for k in range(2 * case.items):
        Image.fromarray(draw.integers(0, 255, (case.pixels, case.pixels, 3), dtype=np.uint8)).save(folder / f"{k}.png")
        rows.append({"prompt": "<image>what?", "images": [f"{k}.png"], "chosen": words(), "rejected": words()})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(case: Case, folder: Path) -> None:
    """Two updates of ``afzal train dpo``."""
    from afzal import config, recipes

    folder.mkdir(parents=True, exist_ok=True)
    make(folder, case)
    settings = quiet(folder, dtype=case.dtype, rank=case.rank) | {
        "model": str(folder / "model"),
        "data": str(folder / "pairs.jsonl"),
        "batch_size": case.items,
        "max_steps": 2,
        "tokens_per_forward": 8192,
        "activation_checkpointing": "none",
    }
    recipes.train(config.make("dpo", **settings))


def main(case: Case, folder: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        tiny = {
            "width": 32,
            "ff": 64,
            "layers": 2,
            "heads": 4,
            "tower": 16,
            "tower_layers": 2,
            "pixels": 28,
            "items": 2,
        }
        train(replace(case, **tiny, rank=case.rank and 1), folder / "small")
        before = peak_from_here()
        train(case, folder)
    print(bytes_of("VmHWM") - before)


if __name__ == "__main__":
    main(Case(**json.loads(sys.argv[1])), Path(sys.argv[2]))
