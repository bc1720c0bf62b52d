"""TRL's DPO on pictures as an oracle: the same rows give the same losses on a tiny LLaVA.

Needs TRL 1.16 in the environment (``make peers``); skipped without it.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from helpers_multimodal import made, picture
from helpers_trl import in_order, trl_arguments

from afzal import config, recipes, runs
from afzal.tokens import update_order

trl = pytest.importorskip("trl", reason="TRL is not installed here (make peers)")
pytest.importorskip("PIL", reason="needs the extra vision")
pytestmark = pytest.mark.slow

ROWS, BATCH = 16, 4
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' }}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}{% elif p['type'] == 'image' %}<image>"
    "{% endif %}{% endfor %}{% endif %}{% if m['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
"""Nothing stands after the end of an answer: TRL scores what does, and Afzal does not."""


def of_trl(folder: Path, rows: list[dict[str, Any]], lr: float) -> list[dict[str, float]]:
    """Logged metrics of TRL's DPOTrainer over ``rows`` in the given order."""
    import torch
    from datasets import Dataset, Features, Image, List, Value
    from transformers import LlavaForConditionalGeneration

    arguments = trl_arguments(folder / "trl", BATCH, lr)
    message = List({"role": Value("string"), "content": Value("string")})
    columns = dict.fromkeys(("prompt", "chosen", "rejected"), message)
    data = Dataset.from_list(rows, features=Features({**columns, "images": List(Image())}))
    processor = made("llava")[1]
    processor.chat_template = processor.tokenizer.chat_template = TEMPLATE
    model = LlavaForConditionalGeneration.from_pretrained(folder / "model", dtype=torch.float32)
    trainer = in_order()(model, args=arguments, train_dataset=data, processing_class=processor)
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def test_four_steps_of_dpo_on_pictures_agree_with_trl_in_fp32(tmp_path: Path) -> None:
    from PIL import Image

    model, processor = made("llava")
    processor.chat_template = processor.tokenizer.chat_template = TEMPLATE
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    rows, theirs = [], []
    for k in range(ROWS):
        (tmp_path / f"{k}.png").write_bytes(picture(k))
        sides = {side: [{"role": "assistant", "content": f"{word} {k}"}] for side, word in _WORDS.items()}
        content = [{"type": "image", "path": f"{k}.png"}, {"type": "text", "text": f"What is {k}?"}]
        rows.append({"prompt": [{"role": "user", "content": content}], **sides})
        shown = Image.open(io.BytesIO(picture(k)))
        theirs.append({"prompt": [{"role": "user", "content": f"What is {k}?"}], **sides, "images": [shown]})
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"model": str(tmp_path / "model"), "data": str(tmp_path / "data.jsonl"), "out": str(tmp_path / "afzal")}
    given |= {"batch_size": BATCH, "lr": 1e-3, "lr_schedule": "constant", "warmup": 0, "eval_fraction": 0.0}
    run = recipes.train(config.make("dpo", **given, train_towers=True, sample_prompts=0))
    ours = runs.open_run(run).metrics("train")
    order = update_order(ROWS, BATCH, epoch=0, seed=0)
    losses = of_trl(tmp_path, [theirs[i] for update in order for i in update], given["lr"])
    assert len(ours) == len(losses) == ROWS // BATCH
    for a, b in zip(ours, losses, strict=True):
        for name in ("loss", "rewards/margins", "logps/chosen"):
            assert a[name] == pytest.approx(b[name], abs=1e-4), (a["step"], name)
    assert ours[-1]["loss"] < 0.69, "nothing was learnt, so agreement would say little"


_WORDS = {"chosen": "a good one,", "rejected": "a bad one of"}
