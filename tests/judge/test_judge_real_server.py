"""A judge behind a real third-party OpenAI-compatible server: ``transformers serve`` with a tiny model."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers_model_server import serving
from helpers_runs import model_folder

from afzal import data
from afzal.cli import main
from afzal.records import Item, Response


@pytest.fixture
def server(tmp_path) -> Iterator[tuple[str, str, subprocess.Popen]]:
    """The server's address, the model's name there, and the process."""
    from transformers import AutoTokenizer

    model = model_folder(tmp_path / "model", max_position_embeddings=4096)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
    tokenizer.save_pretrained(model)
    with serving(model) as (url, process):
        yield url, str(model), process


@pytest.mark.slow
def test_a_judge_behind_transformers_serve(server, tmp_path):
    url, model, process = server
    items = [Item(str(k), f"q{k}", (Response(f"a{k}", "x"), Response(f"b{k}", "y"))) for k in range(3)]
    data.write(items, tmp_path / "rows.jsonl", "afzal")
    settings = {"kind": "http", "url": url, "model": model, "max_tokens": 8, "concurrency": 1}
    (tmp_path / "judge.yaml").write_text(json.dumps(settings))
    asked = ["judge", str(tmp_path / "rows.jsonl"), "--judge", str(tmp_path / "judge.yaml"), "--resamples", "10"]
    assert main([*asked, "--out", str(tmp_path / "out")]) == 0
    (seen,) = json.loads((tmp_path / "out" / "summary.json").read_text())
    # a random model writes nothing readable, and its replies are cut: six games, six reasons, no verdict
    assert (seen["games"], seen["no_verdict"], sum(seen["why_none"].values())) == (6, 6, 6)
    assert seen["tokens_in"] > 6 * 50
    verdicts = (tmp_path / "out" / "verdicts.jsonl").read_bytes()
    process.kill()
    process.wait()
    cache = str(tmp_path / "out" / "replies.sqlite")
    assert main([*asked, "--out", str(tmp_path / "again"), "--cache", cache]) == 0  # the server is gone
    assert (Path(tmp_path) / "again" / "verdicts.jsonl").read_bytes() == verdicts
