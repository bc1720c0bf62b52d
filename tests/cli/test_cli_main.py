"""The command line: its imports, its messages when something is wrong, and its exit codes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import afzal
from afzal import data
from afzal.cli import VERBS, main
from afzal.cli.remedies import adapt_remedy
from afzal.errors import AfzalError, Terminated

TRAIN = ["train", "dpo", "--model", "M", "--data", "D"]
INTERRUPTED = "interrupted by Ctrl-C: afzal train; nothing was written; the same command starts it again"


def install(monkeypatch: pytest.MonkeyPatch, **functions: Any) -> None:
    """Replace the recipes, which need torch and a model, by a stand-in."""
    fake = SimpleNamespace(**functions)
    monkeypatch.setitem(sys.modules, "afzal.recipes", fake)
    monkeypatch.setattr(afzal, "recipes", fake, raising=False)


def failing(error: BaseException) -> Any:
    def train(*_: Any, **__: Any) -> Path:
        raise error

    return train


def imported_by(*args: str) -> set[str]:
    """Every module that a fresh interpreter imports to run a command."""
    command = [sys.executable, "-X", "importtime", "-m", "afzal", *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


HEAVY = {"torch", "transformers", "datasets", "pandas", "scipy"}


def test_help_imports_no_verb_and_nothing_heavy():
    names = imported_by("--help")
    assert not names & (HEAVY | {"pydantic", "numpy", "yaml"})
    assert not {f"afzal.cli.{verb}" for verb in VERBS} & names


def test_help_of_train_needs_no_torch():
    assert not imported_by("train", "dpo", "--help") & HEAVY


def test_check_of_ten_thousand_rows_needs_no_torch(tmp_path: Path):
    data = tmp_path / "pairs.jsonl"
    rows = (f'{{"prompt": "Say {n}", "chosen": "{n}!", "rejected": "No {n}."}}\n' for n in range(10_000))
    data.write_text("".join(rows))
    assert not imported_by("check", str(data)) & {"torch", "transformers", "datasets", "pyarrow"}


def test_every_verb_is_in_the_help_and_has_its_own_help(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    for verb in VERBS:
        assert f" {verb} " in listed
        assert main([verb, "--help"]) == 0
        assert f"Usage: afzal {verb}" in capsys.readouterr().out


def test_help_shows_text_in_brackets(capsys: pytest.CaptureFixture[str]):
    """Rich reads ``[png]`` as a style and drops it."""
    assert main(["compare", "--help"]) == 0
    assert "'afzal[png]'" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("args", [[], ["train"]])
def test_a_group_without_a_command_shows_its_help(args: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(args) == 0
    assert "Commands" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"afzal {afzal.__version__}\n"


SAID = {
    "trian": "error: unknown command 'trian' (did you mean train?)\n  try: afzal --help\n",
    "dpo --model M": "error: unknown command 'dpo'\n  try: afzal train dpo ...\n",
    "Train dpo": "error: unknown command 'Train' (did you mean train?)\n  try: afzal --help\n",
    "aggregate a --by mode": "error: Invalid value for '--by': 'mode' is not one of 'mean', 'jeffreys', 'majority', "
    "'dawid_skene', 'crowd_bt', 'gold' (see afzal aggregate --help)\n",
    "xyzzy": "error: unknown command 'xyzzy'\n  try: afzal --help\n",
    "--bogus": "error: unknown option --bogus (see afzal --help)\n",
    "generate --model M --n x": "error: -n: n cannot be 'x'; wanted: a whole number of at least 1\n",
    "train dpo --bata 3": "error: unknown option --bata (did you mean --beta?)\n",
    "train dpo --learning-rate=3": "error: unknown option --learning-rate (did you mean --lr?)\n",
    "train dpo --max-token 3": "error: unknown option --max-token (did you mean --max-tokens?)\n",
    "train sft --beta 3": "error: --beta has no effect on sft (only on dpo, ipo, kto, irl)\n"
    "  try: leave it out; see afzal train sft --help\n",
    "train dpo --objective ipo": "error: --objective has no effect on dpo (only on prefer, meta, reward, irl)\n"
    "  try: afzal train prefer --objective ...; see afzal train dpo --help\n",
    "train dpo --xyzzy 3": "error: unknown option --xyzzy (see afzal train dpo --help)\n",
    "train dpo --config run.yaml": "error: unknown option --config\n  try: afzal train FILE.yaml, without a flag\n",
    "train dpo --loss-type ipo": "error: unknown option --loss-type\n"
    "  try: afzal train prefer --objective NAME; list them with: afzal objectives\n",
    "train dpo --lr": "error: Option '--lr' requires an argument\n",
    "train simpo": "error: 'simpo' is an objective, not a method\n  try: afzal train prefer --objective simpo ...\n",
    "train dpoo": "error: 'dpoo' is neither a method nor a file (did you mean dpo?)\n"
    "  try: afzal train sft|dpo|ipo|kto|prefer|meta|reward|irl|ppo|rloo|grpo|reinforce ..., or afzal train FILE.yaml\n",
    "train dpo run.yaml": "error: 'run.yaml' is a file, which names its own method\n  try: afzal train run.yaml\n",
    "train dpo beta": "error: command line: 'beta' is not a setting\n  try: write key=value, such as beta=0.2\n",
    "train dpo --model M --data D --lr fast": "error: --lr: lr cannot be 'fast'; wanted: a number of at least 0\n",
    "train dpo --model M": "error: the setting 'data' is missing\n"
    "  try: set data (training data: a file, a folder or a hub id; the format is detected)\n",
    "iterate --model M --prompts P": "error: reward is missing: a reward model's folder, module:function, "
    "file.py:function, or people\n",
    "generate --model M": "error: give either prompt (a text) or prompts (a file)\n",
    "demo --model M": "error: --model and --data go together\n  try: give both, or neither\n",
}


@pytest.mark.parametrize("line", SAID)
def test_messages_about_a_wrong_command_line(line: str, capsys: pytest.CaptureFixture[str]):
    assert main(line.split()) == 2
    assert capsys.readouterr() == ("", SAID[line])


def test_a_typo_in_the_path_of_a_run_is_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "stories").mkdir(parents=True)
    assert main(["train", "runs/storeis", "--resume"]) == 2
    assert capsys.readouterr().err == (
        "error: 'runs/storeis' is neither a method nor a file\n  try: did you mean runs/stories?\n"
    )


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's class."""


class Stopped(AfzalError):
    signal = "SIGTERM"


FAILURES = {
    "input": (AfzalError("no", where="f:1", remedy="mend it"), 2, "error: f:1: no\n  try: mend it\n"),
    "disk full": (
        OSError(errno.ENOSPC, "No space left on device", "R/metrics.jsonl"),
        2,
        "error: R/metrics.jsonl: No space left on device\n"
        "  try: free space on that disk, then continue with --resume\n",
    ),
    "read only": (
        PermissionError(errno.EACCES, "Permission denied", "R"),
        2,
        "error: R: Permission denied\n  try: get read permission if it is an input, or choose another --out\n",
    ),
    "memory": (
        OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB\nmore"),
        2,
        "error: out of memory\n  try: lower tokens_per_forward, or activation_checkpointing=full, or lora_rank\n",
    ),
    "bug": (
        RuntimeError("boom\nand more"),
        70,
        "error: RuntimeError: boom\n  this is a bug in Afzal; run it again with --debug to see where\n",
    ),
    "signal": (
        Stopped("stopped by SIGTERM after step 3", remedy="continue with: afzal train R/run.yaml --resume"),
        143,
        "stopped by SIGTERM after step 3\n  try: continue with: afzal train R/run.yaml --resume\n",
    ),
    "Ctrl-C": (KeyboardInterrupt(), 130, f"{INTERRUPTED}\n"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_every_failure_is_a_few_plain_lines(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    error, code, said = FAILURES[name]
    install(monkeypatch, train=failing(error))
    assert main(TRAIN) == code
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize("at", [0, 1, len(TRAIN)])
def test_debug_anywhere_lets_the_error_through(at: int, monkeypatch: pytest.MonkeyPatch):
    install(monkeypatch, train=failing(AfzalError("no")))
    with pytest.raises(AfzalError):
        main([*TRAIN[:at], "--debug", *TRAIN[at:]])


def test_a_reader_that_goes_away_is_no_error():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "afzal", "train", "dpo", "--help"], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_no_progress_bars_and_no_telemetry(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    for key in ("HF_HUB_DISABLE_TELEMETRY", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(key, "")
        monkeypatch.delenv(key)
    monkeypatch.setenv("DATASETS_VERBOSITY", "info")
    main(["--version"])
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "error"
    assert os.environ["DATASETS_VERBOSITY"] == "info"


@pytest.mark.parametrize(
    ("words", "said", "not_said"),
    [
        (["check", "F"], "--columns prompt=q,chosen=good,rejected=bad", "afzal convert"),
        (["judge", "F", "--judge", "rule:longest"], "(afzal judge has no --columns: give it to afzal convert FILE", ""),
        (["score", "--model", "M", "--data", "G"], "with --data-format text", "--format text"),
        (["leaderboard", "G"], "(afzal leaderboard has no --columns and --format: give them to", "--data-format"),
    ],
)
def test_a_remedy_names_what_the_command_has(words, said, not_said, tmp_path, capsys, monkeypatch):
    """Readers do not know which command calls them; each of these has other reading options, or none."""
    monkeypatch.chdir(tmp_path)
    Path("F").write_text('{"q": "hi", "good": "a", "bad": "b"}\n')
    Path("G").write_text('{"prompt": "hi", "text": "a", "x_label": true}\n')
    Path("M").mkdir()
    monkeypatch.setattr("afzal.cli.startup.begin", lambda *_: None)
    monkeypatch.setattr("afzal.rewards.score.score", lambda config: data.read(config.data))
    assert main(words) == 2
    err = capsys.readouterr().err
    assert said in err
    assert not not_said or not_said not in err.replace("--data-format text", "")


def test_a_remedy_names_keys_if_training_settings_are_in_a_file():
    error = AfzalError("x", where="y", remedy="say it with --columns a=b or --format afzal")
    adapt_remedy(error, "compare", None)
    assert str(error).endswith("(as columns and data_format in the file of afzal compare)")


@pytest.mark.parametrize(("name", "kind", "code"), [("SIGINT", KeyboardInterrupt, 130), ("SIGTERM", Terminated, 143)])
def test_an_interruption_that_a_library_turns_into_an_error_is_no_bug(
    name: str, kind: Any, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def importing(*_: object, **__: object) -> None:
        try:
            os.kill(os.getpid(), signal.Signals[name])
            time.sleep(10)
        except kind:
            pass
        raise ModuleNotFoundError("Could not import module 'X'")

    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.getsignal(number) for number in usual}
    monkeypatch.setattr(signal, "getsignal", usual.__getitem__)
    install(monkeypatch, train=importing)
    try:
        assert main(TRAIN) == code
        shown = {"SIGINT": "Ctrl-C"}.get(name, name)
        assert capsys.readouterr().err == INTERRUPTED.replace("Ctrl-C", shown) + "\n"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
