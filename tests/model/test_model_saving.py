"""Saved folders: who may read them."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers_models import make
from helpers_tokenizers import byte_tokenizer

from afzal.model.load import add_lora, save_model
from afzal.model.reward import HEADS_FILE, load_reward_model, save_reward_model

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs the file modes of POSIX")


@pytest.fixture(params=[0o022, 0o027, 0o077])
def mask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {f.name: stat.S_IMODE(f.stat().st_mode) for f in folder.iterdir()}


@pytest.mark.parametrize("kind", ["model", "adapter", "ensemble"])
def test_weights_may_be_read_by_whoever_may_read_the_rest(tmp_path, mask, kind):
    """A server that runs as another user of the group can load the output of a training run."""
    model, tokenizer = make("llama", vocab_size=len(byte_tokenizer())), byte_tokenizer()
    out = tmp_path / "saved"
    out.mkdir()
    if kind == "ensemble":
        save_model(model, tokenizer, tmp_path / "trunk")
        save_reward_model(load_reward_model(str(tmp_path / "trunk"), heads=2), tokenizer, out)
    else:
        save_model(add_lora(model, rank=2, alpha=4) if kind == "adapter" else model, tokenizer, out)
    weights = {"model": "model.safetensors", "adapter": "adapter_model.safetensors", "ensemble": HEADS_FILE}[kind]
    by_file = modes(out)
    assert weights in by_file
    assert set(by_file.values()) == {0o666 & ~mask}, by_file
