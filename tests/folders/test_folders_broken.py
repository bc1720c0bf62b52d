"""Broken and hostile folders: every one gives a user error, in bounded time and memory."""

import multiprocessing
import resource
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import helpers_folders as make
import pytest

from afzal.cli import main
from afzal.errors import AfzalError
from afzal.folders import load
from afzal.folders.kinds import is_adapter
from afzal.model.load import load_model, load_tokenizer
from afzal.model.reward import load_reward_model
from afzal.tokens.codec import Codec

SECONDS, BYTES = 10, 1 << 30
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    ["afzal.recipes", "afzal.cli.generate", "afzal.cli.score", "transformers.models.llama.modeling_llama", "peft"]
)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("broken")
    make.bases(root)
    return root


def test_there_are_more_than_forty_folders():
    assert len(make.BROKEN) >= 40


def test_a_typo_in_a_models_name_is_reported(tmp_path, monkeypatch):
    def unreachable(path: str, **options: object) -> Path:
        raise OSError("no network\nAn error happened while\nlooking")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(load, "local_folder", unreachable)
    (tmp_path / "my-model").mkdir()
    with pytest.raises(AfzalError) as said:
        load.find_folder("my-modle")
    assert str(said.value) == (
        "there is no folder 'my-modle', and no model of that name could be read from the hub\n"
        "  why: no network. An error happened while looking\n  try: did you mean my-model?"
    )


def test_a_run_that_has_not_finished_is_called_unfinished(tmp_path):
    (tmp_path / "run.json").write_text('{"status": "running"}')
    with pytest.raises(AfzalError) as said:
        load.model_folder(str(tmp_path))
    assert said.value.remedy.startswith(f"let the run finish: afzal train {tmp_path} --resume; for rounds, ")


def opened(folder: str, base: str) -> None:
    Codec(load_tokenizer(folder)).encode(["a" * 40 + "b"], markers=False)
    (load_reward_model if base == "reward" else load_model)(folder)


@pytest.mark.parametrize("name", make.BROKEN)
def test_a_broken_folder_is_a_user_error(place, name):
    base, hurt = make.BROKEN[name]
    folder = str(make.copy(place, base, "bad", hurt))
    with pytest.raises(AfzalError) as caught:
        opened(folder, base)
    assert caught.value.remedy
    assert "above report" not in str(caught.value)


@pytest.mark.parametrize("name", [n for n, (base, _) in make.BROKEN.items() if base == "model"])
def test_a_plan_never_fails_because_of_a_configuration(place, name, capsys):
    """It reads nothing else in a folder, and plans without what it does not need."""
    folder = str(make.copy(place, "model", "bad", make.BROKEN[name][1]))
    assert main(["plan", "dpo", "--model", folder]) in (0, 2)
    assert "bug of Afzal" not in capsys.readouterr().err


def test_the_good_folders_load(place):
    """The control: the modification is what gets refused."""
    for base in ("model", "wide", "adapter", "wide-adapter"):
        assert load_model(str(place / base)).config.vocab_size == len(load_tokenizer(str(place / base)))
        assert is_adapter(place / base) == base.endswith("adapter")
    assert load_reward_model(str(place / "reward")).config.num_labels == 1


def measured(arguments: list[str], answers: Connection) -> None:
    """Run a command line; send its exit code, CPU seconds and peak memory in bytes."""
    resource.setrlimit(resource.RLIMIT_CPU, (4 * SECONDS, 4 * SECONDS))
    before = resource.getrusage(resource.RUSAGE_SELF)
    code = main(arguments)
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    answers.send((code, spent, used.ru_maxrss * 1024))


def line_of(place: Path, name: str) -> list[str]:
    base, hurt = make.BROKEN[name]
    folder = str(make.copy(place, base, "bad", hurt))
    (place / "pairs.jsonl").write_text('{"prompt": "Q", "chosen": " a", "rejected": " b"}\n' * 4)
    if base == "reward":
        return ["score", "--model", folder, "--data", str(place / "pairs.jsonl")]
    return ["generate", "--model", folder, "--prompt", "a" * 40 + "b", "--max-new-tokens", "2"]


@pytest.mark.slow
@pytest.mark.parametrize("name", make.BROKEN)
def test_a_broken_folder_costs_neither_time_nor_memory(place, name):
    """In a separate process, forked after the libraries were imported, which takes four of the ten seconds."""
    mine, theirs = FORKED.Pipe()
    process = FORKED.Process(target=measured, args=(line_of(place, name), theirs), daemon=True)
    process.start()
    theirs.close()
    assert mine.poll(240), "it did not end"
    code, seconds, size = mine.recv()
    process.join()
    assert code == 2
    assert seconds < SECONDS - 4
    assert size < BYTES


# a process inherits the peak memory of its parent: the tests may use more than is allowed here
LAUNCHER = """import subprocess, sys
from resource import RUSAGE_CHILDREN, getrusage
code = subprocess.call(sys.argv[1:])
used = getrusage(RUSAGE_CHILDREN)
print(code, used.ru_utime + used.ru_stime, used.ru_maxrss)"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["10^8 layers", "deep tokenizer", "adapter by an endless pattern"])
def test_a_broken_folder_costs_little_on_the_command_line_whatever_is_typed(place, name):
    command = [sys.executable, "-c", LAUNCHER, sys.executable, "-m", "afzal", *line_of(place, name)]
    done = subprocess.run(command, input="y\n" * 20, capture_output=True, text=True, check=True)
    code, seconds, kilobytes = done.stdout.split()[-3:]
    assert int(code) == 2, done.stderr
    assert float(seconds) < SECONDS
    assert int(kilobytes) * 1024 < BYTES
