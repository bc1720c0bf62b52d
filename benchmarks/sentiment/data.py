"""Training data of the experiment: story openings with their next sentence, and answers ordered by valence."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from benchmarks.sentiment import valence

_SENTENCE = re.compile(r'[^.!?]+[.!?]+["\u201d]?\s*')
HELD_OUT = 64


def write_openings(folder: Path) -> None:
    """Write ``sft.jsonl`` (opening -> next sentence) and ``held-out.jsonl`` (64 openings that no training sees).

    Repeated openings appear once. A hash decides their order and which of them are held out.
    """
    continuations: dict[str, str] = {}
    source = valence.shared() / "sft" / "tinystories.jsonl"
    for line in source.read_text("utf-8").splitlines():
        sentences = _SENTENCE.findall(json.loads(line)["text"].strip())
        if len(sentences) > 1:
            continuations.setdefault(sentences[0].strip(), " " + sentences[1].strip())
    order = sorted(continuations, key=lambda opening: hashlib.sha256(opening.encode()).digest())
    held_out, train = order[:HELD_OUT], order[HELD_OUT:]
    _write(folder / "sft.jsonl", ({"prompt": o, "completion": continuations[o]} for o in train))
    _write(folder / "held-out.jsonl", ({"prompt": o, "completion": continuations[o]} for o in held_out))


def write_pairs(answers: Path, out: Path) -> int:
    """Write every pair of answers to one prompt with different summed valence, the higher one chosen (Rafailov et al.
    2023, section 6); returns the number of pairs."""
    by_prompt: dict[str, list[str]] = {}
    for line in answers.read_text("utf-8").splitlines():
        row = json.loads(line)
        by_prompt.setdefault(row["prompt"], []).append(row["completion"])
    rows = []
    for prompt, texts in by_prompt.items():
        worth = {text: valence.summed(prompt, text) for text in texts if text.strip()}
        for a, b in combinations(worth, 2):
            if worth[a] != worth[b]:
                chosen, rejected = (a, b) if worth[a] > worth[b] else (b, a)
                rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    _write(out, rows)
    return len(rows)


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
