"""Uploads to the hub and downloads from it with the real client, against a stand-in on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_hub import Hub
from helpers_runs import model_folder, pair_file, settings

from afzal import hub
from afzal.errors import AfzalError

TOKEN = "hf_" + "x" * 20
SRC = str(Path(hub.__file__).parents[1])


@pytest.fixture
def there():
    standing = Hub()
    yield standing
    standing.close()


def afzal(place: Path, address: str, *arguments: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    """Run the command line in a separate process, since the client reads its addresses on import."""
    names = {"PATH", "LANG", "VIRTUAL_ENV"}
    given = {k: v for k, v in os.environ.items() if k in names}
    given |= {
        "HF_ENDPOINT": address,
        "HF_HOME": str(place / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
    }
    given |= {"PYTHONPATH": SRC, "HOME": str(place)} | ({"HF_TOKEN": token} if token else {})
    command = [sys.executable, "-m", "afzal", *arguments]
    return subprocess.run(command, env=given, cwd=place, capture_output=True, text=True)


def flags(given: dict) -> list[str]:
    return [part for k, v in given.items() if v is not None for part in (f"--{k.replace('_', '-')}", str(v))]


@pytest.mark.slow
def test_a_run_is_uploaded_with_its_card_and_loaded_again_by_its_id(tmp_path, there):
    given = settings(tmp_path, tmp_path / "run", max_steps=2, save_every_steps=None, eval_every_steps=2)
    pair_file(tmp_path / "pairs.jsonl", n=12)
    done = afzal(tmp_path, there.address, "train", "dpo", *flags(given), "--push-to-hub", "me/better")
    assert done.returncode == 0, done.stderr
    files = there.files["me/better"]
    assert there.private["me/better"] is True
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(files)
    assert not [name for name in files if name.endswith((".jsonl", ".html")) or name in ("run.yaml", "run.json")]
    card = files["README.md"].decode()
    assert "model-index:" in card
    assert 'path = "me/better"' in card
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["uploaded"] == f"{there.address}/me/better"
    assert all(token in ("", f"Bearer {TOKEN}") for _, _, token in there.requests)
    for file in (tmp_path / "run").rglob("*"):
        assert not file.is_file() or TOKEN.encode() not in file.read_bytes(), f"the token stands in {file.name}"
    again = afzal(
        tmp_path, there.address, "generate", "--model", "me/better", "--prompt", "ab", "--max-new-tokens", "3"
    )
    assert again.returncode == 0, again.stderr
    before = len(there.requests)
    resumed = afzal(tmp_path, there.address, "train", str(tmp_path / "run"), "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert not [r for r in there.requests[before:] if r[0] == "POST"], "uploaded once"


def test_push_uploads_a_folder_and_a_refusal_says_how_to_try_again(tmp_path, there):
    model = model_folder(tmp_path / "model")
    (tmp_path / "model" / "samples.jsonl").write_text("private")
    for name in ("checkpoints/step-00000004/model-00001-of-00001.safetensors", "best/tokenizer.json"):
        (tmp_path / "model" / name).parent.mkdir(parents=True)
        (tmp_path / "model" / name).write_bytes(b"of a checkpoint")
    (tmp_path / "model" / "additional_chat_templates").mkdir()
    (tmp_path / "model" / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    there.refuses = 403
    done = afzal(tmp_path, there.address, "push", str(model), "me/plain")
    assert done.returncode == 2
    assert "afzal push" in done.stderr
    there.refuses = 0
    done = afzal(tmp_path, there.address, "push", str(model), "me/plain", "--public")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{there.address}/me/plain"
    assert there.private["me/plain"] is False
    inside = [name for name in there.files["me/plain"] if "/" in name]
    assert inside == ["additional_chat_templates/rag.jinja"]
    assert "samples.jsonl" not in there.files["me/plain"]
    assert there.files["me/plain"]["config.json"] == (tmp_path / "model" / "config.json").read_bytes()


@pytest.mark.parametrize(
    ("variables", "repository", "match"),
    [
        ({}, "better", "OWNER/NAME"),
        ({}, "me/../x", "OWNER/NAME"),
        ({}, "me/better--still", "cannot be 'me/better--still'"),
        ({}, "me/better.", "cannot be 'me/better.'"),
        ({}, "me/better.git", "cannot be 'me/better.git'"),
        ({"HF_HUB_OFFLINE": "1"}, "me/better", "HF_HUB_OFFLINE is set"),
        ({}, "me/better", "no token"),
    ],
)
def test_late_failures_are_refused_at_the_beginning(monkeypatch, variables, repository, match):
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(AfzalError, match=match):
        hub.refuse_unreachable(repository)


def test_a_folder_without_weights_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: TOKEN)
    with pytest.raises(AfzalError, match="holds no weights"):
        hub.push(tmp_path, "me/better", private=True)
