"""Answers of models to held-out prompts, sampled once and cached, for a judge to compare."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from afzal import runs
from afzal.config import GenerateConfig
from afzal.config.serving import is_server
from afzal.errors import AfzalError
from afzal.generate.run import generate
from afzal.hashes import content_hash


@dataclass(frozen=True, slots=True)
class Drawing:
    """How answers are drawn: ``n`` per prompt with at most ``max_new_tokens`` tokens; temperature 0 is greedy."""

    n: int = 1
    temperature: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0


def answers_of(
    source: str,
    prompts: str,
    drawing: Drawing,
    folder: Path,
    say: Callable[[str], None] = lambda line: None,
    *,
    opponents: Sequence[str] = (),
) -> str:
    """The file of a model's answers to the prompts of a file; ``source`` itself if it is a file of answers.

    Answers, also those of a server, are kept in ``folder`` under a hash of the model, the prompts and the drawing. The
    same call reads them back, and a file exists only once it is complete.

    Random numbers depend on the seed and the model, since a win rate assumes independent answers: with the same
    numbers, two similar models would write many identical texts.

    Args:
        source: the folder of a model or a finished run, the YAML file of a server, or a file of answers.
        opponents: the sources compared with. If the same model is among them, it draws independent answers.

    Raises:
        AfzalError: the model or the prompts cannot be read.
    """
    model = Path(source)
    if not _answers(source):
        return source
    content = content_hash(source)
    same_model = any(_answers(opponent) and content_hash(opponent) == content for opponent in opponents)
    seed = drawing.seed ^ int(content[:15], 16) ^ (same_model << 60)
    what = json.dumps([content, content_hash(prompts), asdict(drawing), seed], sort_keys=True)
    stem = model.stem if is_server(source) else model.resolve().name
    name = "".join(c if c.isalnum() or c in "-_" else "_" for c in stem)
    file = folder / hashlib.sha256(what.encode()).hexdigest()[:16] / f"{name}.jsonl"
    if file.exists():
        say(f"{source}: its answers are read from {file}")
        return str(file)
    runs.make_folder(file.parent)
    part = file.with_suffix(".part")
    part.unlink(missing_ok=True)
    say(f"{source}: sampling answers to the prompts of {prompts}")
    generate(GenerateConfig(model=source, prompts=prompts, out=str(part), **asdict(replace(drawing, seed=seed))))
    part.replace(file)
    return str(file)


def refuse_no_model(sources: list[str]) -> None:
    """Refuse prompts without a model to answer them.

    Raises:
        AfzalError: none of the sources is a folder or a server.
    """
    if not any(_answers(source) for source in sources):
        raise AfzalError(
            "prompts are given, but no model that answers them",
            where="--prompts",
            why=f"{' and '.join(sources)}: not a folder, nor the file of a server",
            remedy="name the folder of a run or a model, or leave out --prompts",
        )


def _answers(source: str) -> bool:
    return Path(source).is_dir() or is_server(source)
