"""Stories for SFT and pairs of endings for DPO: real ones if the data folder exists, else synthetic."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

_NAMES = "Aziz Barno Clara Dilnoza Emil Farida Gulnora Hugo Iroda Jasur Kamila Lola Madina Nodir Olim Parvina"
_PLACES = "the market|the old bridge|the garden|the river|the school|a small hill|the station|the library"
_THINGS = "a red kite|a wooden boat|a loaf of bread|a lost key|a grey cat|a yellow ball|a letter|a map"
_DOINGS = "looked at it for a long time|asked a friend about it|hid it under a tree|showed it to all|carried it home"
_GLAD = "They laughed and played until evening|Everyone was happy and sang a song|It was the best day of all"
_SAD = "It broke and nobody spoke|They were angry and went home alone|It was lost for ever and they cried"


class Material(NamedTuple):
    """Rows of prompt and completion, rows of prompt, chosen and rejected, and their source."""

    stories: list[dict[str, str]]
    pairs: list[dict[str, str]]
    source: str


def material(shared: Path | None, *, stories: int = 6000, pairs: int = 2000) -> Material:
    """Stories and pairs of the data folder, or the given number of synthetic ones if it is absent.

    A synthetic pair has one beginning and two endings; the glad ending is preferred.
    """
    if shared is not None and (shared / "sft/tinystories.jsonl").exists():
        texts = [row["text"].strip() for row in _rows(shared / "sft/tinystories.jsonl")]
        cut = [text.partition(". ") for text in texts]
        told = [{"prompt": f"{first}.", "completion": f" {rest}"} for first, _, rest in cut if rest]
        rows = _rows(shared / "derived/stories_valence_pairs.jsonl")
        return Material(told, [{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in rows], "real stories")
    draw = random.Random(0)
    told = [_story(draw, draw.choice((_GLAD, _SAD))) for _ in range(stories)]
    preferred = []
    for _ in range(pairs):
        seed = draw.random()
        glad, sad = (_story(random.Random(seed), endings) for endings in (_GLAD, _SAD))
        row = {"prompt": glad["prompt"], "chosen": glad["completion"], "rejected": sad["completion"]}
        preferred.append(row)
    return Material(told, preferred, "made stories")


def _story(draw: random.Random, endings: str) -> dict[str, str]:
    name, place, thing = draw.choice(_NAMES.split()), draw.choice(_PLACES.split("|")), draw.choice(_THINGS.split("|"))
    first, second = (draw.choice(_DOINGS.split("|")) for _ in range(2))
    opening = f"One day {name} went to {place} and found {thing}."
    ending = draw.choice(endings.split("|"))
    return {"prompt": opening, "completion": f" {name} {first}. Then {name} {second}. {ending}."}


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write the rows as JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
