"""Shared fixtures, the optional data folder next to the checkout, and no waiting for the disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

os.fsync = lambda descriptor: None  # a quarter of a small run is disk waits; tests of write order watch the calls

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def shared() -> Path:
    """The folder of real data and models; tests that need it are skipped if it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the optional data folder ../shared is absent")
    return SHARED


@pytest.fixture
def cuda():
    """The CUDA device; tests that need it are skipped if there is none."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    return torch.device("cuda")
