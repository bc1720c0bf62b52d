"""Broken and hostile folders: every one is the person's error, in bounded time and memory."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import helpers_folders as make
import pytest

from afzal.errors import AfzalError
from afzal.folders.kinds import is_adapter
from afzal.model.load import load_model, load_tokenizer
from afzal.model.reward import load_reward_model

SECONDS, BYTES = 10, 1 << 30


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("broken")
    make.bases(root)
    return root


def test_there_are_more_than_forty_folders():
    assert len(make.BROKEN) >= 40


def opened(folder: str, base: str) -> None:
    load_tokenizer(folder)
    (load_reward_model if base == "reward" else load_model)(folder)


@pytest.mark.parametrize("name", make.BROKEN)
def test_a_broken_folder_is_the_persons_error(place, name):
    base, hurt = make.BROKEN[name]
    folder = str(make.copy(place, base, "bad", hurt))
    with pytest.raises(AfzalError) as caught:
        opened(folder, base)
    assert caught.value.remedy
    assert "above report" not in str(caught.value)


def test_the_good_folders_load(place):
    """The control: what is refused is what was done to them."""
    for base in ("model", "wide", "adapter", "wide-adapter"):
        assert load_model(str(place / base)).config.vocab_size == len(load_tokenizer(str(place / base)))
        assert is_adapter(place / base) == base.endswith("adapter")
    assert load_reward_model(str(place / "reward")).config.num_labels == 1


def bounded(arguments: list[str]) -> tuple[int, float, int, str]:
    """Exit code, processor seconds, largest bytes in memory and words of a command line in a process of its own."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (4 * SECONDS, 4 * SECONDS))

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "afzal", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        preexec_fn=limit,
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b"y\n" * 20)
        process.stdin.close()
        said = process.stderr.read().decode()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, said


@pytest.mark.slow
@pytest.mark.parametrize("name", make.BROKEN)
def test_and_costs_neither_time_nor_memory(place, name):
    base, hurt = make.BROKEN[name]
    folder = str(make.copy(place, base, "bad", hurt))
    (place / "pairs.jsonl").write_text('{"prompt": "Q", "chosen": " a", "rejected": " b"}\n' * 4)
    line = ["generate", "--model", folder, "--prompt", "Q", "--max-new-tokens", "2"]
    if base == "reward":
        line = ["score", "--model", folder, "--data", str(place / "pairs.jsonl")]
    code, seconds, size, said = bounded(line)
    assert code == 2, said
    assert seconds < SECONDS
    assert size < BYTES
