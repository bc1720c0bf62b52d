"""``transformers serve`` as a real third-party OpenAI-compatible server."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NEEDED = ("fastapi", "uvicorn", "openai")
START_S = 180


@contextmanager
def serving(model: Path | None = None) -> Iterator[tuple[str, subprocess.Popen]]:
    """The server's address and process; it serves only the folder ``model`` if given, else any that a request names."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        pytest.skip(f"transformers serve needs {', '.join(missing)}: pip install 'afzal[serve]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "import sys; from transformers.cli.transformers import main; sys.exit(main())"]
    command += ["serve", *([str(model)] if model else []), "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}/v1"
        for _ in range(START_S):
            try:
                # /v1/models fails without a hub cache
                urllib.request.urlopen(f"{url[:-3]}/health", timeout=2).read()
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None, "the server ended"
                time.sleep(1)
        yield url, process
    finally:
        process.kill()
        process.wait()
