"""``afzal chat`` in a separate terminal: one key is a vote, and Ctrl-C stops an answer before it ends the chat."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from helpers_browser import person
from helpers_runs import model_folder
from helpers_web import SOURCE, lines_of, page_of

pty = pytest.importorskip("pty")


class Screen:
    """A process in a pseudo-terminal, and its output."""

    def __init__(self, *arguments: str, cwd: Any) -> None:
        self.descriptor, inside = pty.openpty()
        environment = {**os.environ, "PYTHONPATH": SOURCE, "NO_COLOR": "1", "TERM": "dumb"}
        command = [sys.executable, "-m", "afzal", *arguments]
        self.process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdin=inside, stdout=inside, stderr=inside, start_new_session=True
        )
        os.close(inside)
        self.text = ""

    def until(self, words: str, seconds: float = 120) -> None:
        """Read until the words appear, and drop the output up to them."""
        end = time.monotonic() + seconds
        while words not in self.text:
            assert select.select([self.descriptor], [], [], max(0.0, end - time.monotonic()))[0], self.text
            try:
                self.text += os.read(self.descriptor, 4096).decode("utf-8", "replace")
            except OSError:
                raise AssertionError(self.text) from None
        self.text = self.text.partition(words)[2]

    def type(self, keys: str) -> None:
        os.write(self.descriptor, keys.encode())


@pytest.mark.slow
def test_keys_and_control_c_in_a_terminal(tmp_path):
    for k, name in enumerate(("ours", "theirs")):
        model_folder(tmp_path / name, max_position_embeddings=16384, hidden_size=32 + 16 * k)
    arguments = ["chat", "ours", "--against", "theirs", "--blind", "--out", "v"]
    screen = Screen(*arguments, "--max-new-tokens", "6", cwd=tmp_path)
    screen.until("> ")
    screen.type("hello\n")
    screen.until("better?")
    screen.type("1")  # without Enter
    screen.until("saved: 1 is better")
    screen.until("> ")
    screen.process.send_signal(signal.SIGINT)
    screen.until("1 better" if 'shown": [0' in (tmp_path / "v/votes.jsonl").read_text() else "1 worse")
    assert screen.process.wait(30) == 0
    assert [line["outcome"] for line in lines_of(tmp_path / "v")] == ["first"]

    screen = Screen(*arguments, "--max-new-tokens", "16000", "--temperature", "0", cwd=tmp_path)
    screen.until("> ")
    screen.type("hello\n")
    for place in ("[1]", "[2]"):
        screen.until(place)
        time.sleep(1)
        screen.process.send_signal(signal.SIGINT)
        screen.until("[stopped]")
    screen.until("nothing to compare")
    screen.until("> ")
    screen.type("\x04")
    assert screen.process.wait(30) == 0
    assert len(lines_of(tmp_path / "v")) == 1


@pytest.mark.slow
def test_two_models_on_a_page(chromium, tmp_path):
    for name in ("ours", "theirs"):
        model_folder(tmp_path / name)
    arguments = ["ours", "--against", "theirs", "--page", "--max-new-tokens", "12"]
    with page_of("chat", *arguments, cwd=tmp_path) as (address, process):
        with person(chromium, address) as one:
            one.phase("say")
            assert one.page.inner_text("#who") == "ours and theirs"
            one.page.keyboard.type("hello")
            one.press("Enter")
            one.page.wait_for_function("() => document.querySelectorAll('article small:not(:empty)').length == 2")
            one.phase("say")
            assert not one.page.is_visible("#choices")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert sorted(os.listdir(tmp_path)) == ["ours", "theirs"]
