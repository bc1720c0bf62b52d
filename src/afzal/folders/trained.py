"""What the folder of a run says about its own training."""

from __future__ import annotations

from pathlib import Path


def trained_end(path: str) -> str | None:
    """The token that ended responses in training, where the run's settings name one (``eos_token`` in ``run.yaml``).

    A model that was trained with another end than its tokenizer's own must be read with that end too: the score of an
    answer is that of its last token. None for a folder that is no run, and for a run that named none.
    """
    import yaml

    settings = Path(path) / "run.yaml"
    if not settings.is_file():
        return None
    stated = yaml.safe_load(settings.read_text(encoding="utf-8"))
    named = stated.get("eos_token") if isinstance(stated, dict) else None
    return named if isinstance(named, str) else None
