"""The scorer of benchmarks.stories_valence on a tiny random model."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers_runs import model_folder, pair_file

from benchmarks.stories_valence import Judge


def test_a_model_is_scored_on_held_out_pairs_and_on_samples(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "models/stories260k")
    (tmp_path / "annot").mkdir()
    (tmp_path / "annot/vader_lexicon.txt").write_text("happy\t2.7\t0.9\t[]\n", "utf-8")
    scores = Judge(tmp_path, pair_file(tmp_path / "held_out.jsonl", 8))(str(model))
    assert scores["low"] <= scores["accuracy"] <= scores["high"]
    assert scores["valence"] == pytest.approx(0.0)  # random text has no word of the lexicon
