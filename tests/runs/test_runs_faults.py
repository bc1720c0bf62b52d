"""Faults of the set-up, through the command line: exit code 2, one short block that names the fault and the next step,
no traceback, and nothing of what was there before is touched."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from afzal import runs
from afzal.cli import main


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A tiny model and 24 preferences with which a run would work."""
    folder = tmp_path_factory.mktemp("faults")
    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=2, bos_token_id=1, eos_token_id=2)
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "model")
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(16)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2").save_pretrained(folder / "model")
    rows = [
        {"prompt": f"w3 w{4 + i % 8}", "chosen": f" w5 w{6 + i % 5}", "rejected": f" w{6 + i % 7} w4"}
        for i in range(24)
    ]
    (folder / "prefs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def arguments(place: Path, out: Path, **changes: str) -> list[str]:
    flags = {
        "model": str(place / "model"),
        "data": str(place / "prefs.jsonl"),
        "out": str(out),
        "epochs": "1",
    } | changes
    return ["train", "dpo", *(part for name, value in flags.items() for part in (f"--{name}", value))]


def refused(capsys, args: list[str], *said: str) -> str:
    """Run, and check that the message has the form required of every fault."""
    code = main(args)
    error = capsys.readouterr().err
    assert code == 2, error
    assert "Traceback" not in error
    message = error[error.index("error:") :]
    assert len(message.splitlines()) <= 3, message
    assert "\n  try: " in message, message
    for text in said:
        assert text in message, message
    return message


def test_the_control_works(place, tmp_path):
    assert main(arguments(place, tmp_path / "out")) == 0
    assert runs.open_run(tmp_path / "out").status() == "finished"


# --- the output folder ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission denied"),
        (errno.EDQUOT, "quota"),
        (errno.ENOSPC, "disk is full"),
        (errno.EIO, "input/output error"),
    ],
)
@pytest.mark.parametrize("call", ["mkdir", "write"])
def test_an_output_folder_that_cannot_be_written(place, tmp_path, monkeypatch, capsys, code, said, call):
    out, real = tmp_path / "out", getattr(os, call)

    def refuse(target, *rest, **options):
        where = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else os.fspath(target)
        if where.startswith(str(out)):
            raise OSError(code, os.strerror(code), where)
        return real(target, *rest, **options)

    monkeypatch.setattr(os, call, refuse)
    refused(capsys, arguments(place, out), said, str(out))


@pytest.fixture
def mounted(tmp_path) -> "Path":
    """Mount a small file system with options; unmounted at the end."""
    disks = []

    def mount(name: str, options: str) -> Path:
        disk = tmp_path / name
        disk.mkdir()
        try:
            command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
            subprocess.run(command, check=True, capture_output=True, timeout=20)
        except (OSError, subprocess.SubprocessError):
            pytest.skip("may not mount a file system here")
        disks.append(disk)
        return disk

    yield mount
    for disk in disks:
        subprocess.run(["umount", "-l", str(disk)], check=True, timeout=20)


def test_a_real_read_only_file_system(place, mounted, capsys):
    disk = mounted("ro", "ro,size=1m")
    refused(capsys, arguments(place, disk / "out"), "read-only", str(disk / "out"))


def test_a_real_full_disk(place, mounted, capsys):
    disk = mounted("full", "size=64k")
    (disk / "ballast").write_bytes(b"x" * 65536)
    refused(capsys, arguments(place, disk / "out"), "disk is full", str(disk / "out"))


def a_file(path: Path) -> Path:
    path.write_text("precious")
    return path


def below_a_file(path: Path) -> Path:
    return a_file(path) / "out"


def other_things(path: Path) -> Path:
    path.mkdir()
    (path / "thesis.tex").write_text("precious")
    return path


def an_older_run(path: Path) -> Path:
    run = runs.create(path, {})
    run.log({"kind": "train", "step": 1, "loss": 0.5})
    run.release()
    return path


def too_long(path: Path) -> Path:
    return path / ("x" * 300)


def a_loop(path: Path) -> Path:
    path.symlink_to(path)
    return path / "out"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (a_file, "out"),
        (below_a_file, "file, not a folder"),
        (other_things, "thesis.tex"),
        (an_older_run, "--resume"),
        (too_long, "too long"),
        (a_loop, "loop"),
    ],
)
def test_an_output_path_that_is_taken_or_impossible(place, tmp_path, capsys, make: Callable[[Path], Path], said):
    out = make(tmp_path / "out")
    before = sorted((p, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file())
    refused(capsys, arguments(place, out), said)
    assert sorted((p, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file()) == before


def test_an_output_folder_that_another_process_is_writing(place, tmp_path, capsys):
    script = "import sys; from afzal import runs; r = runs.create(sys.argv[1], {}); print('ready', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        refused(capsys, [*arguments(place, tmp_path), "--resume"], f"process {holder.pid}", "--out")
        holder.kill()


# --- resuming ---------------------------------------------------------------------------------------------------------


def test_resuming_what_is_no_run(place, tmp_path, capsys):
    refused(capsys, [*arguments(place, tmp_path / "missing"), "--resume"], "does not exist")
    (tmp_path / "empty").mkdir()
    refused(capsys, [*arguments(place, tmp_path / "empty"), "--resume"], "run.json")


def test_resuming_with_damaged_facts(place, tmp_path, capsys):
    an_older_run(tmp_path / "out")
    (tmp_path / "out" / "run.json").write_text('{"afzal": ')
    refused(capsys, [*arguments(place, tmp_path / "out"), "--resume"], "run.json", "not JSON")


# --- model and data ---------------------------------------------------------------------------------------------------


def empty(model: Path) -> None:
    model.mkdir()


def pickle_only(model: Path) -> None:
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def broken_config(model: Path) -> None:
    model.mkdir()
    (model / "config.json").write_text("{")


def a_plain_file(model: Path) -> None:
    model.write_text("weights?")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda model: None, "does not exist"),
        (a_plain_file, "is a file"),
        (empty, "config.json"),
        (broken_config, "not JSON"),
        (pickle_only, "pytorch_model.bin"),
    ],
    ids=["missing", "a file", "empty", "broken configuration", "pickles"],
)
def test_a_model_that_cannot_be_used(place, tmp_path, capsys, make: Callable[[Path], None], said):
    make(tmp_path / "model")
    refused(capsys, arguments(place, tmp_path / "out", model=str(tmp_path / "model")), said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("about", ["{", "[1]", "{}", '{"peft_type": "LORA", "base_model_name_or_path": 3}'])
def test_an_adapter_that_names_no_base_model(place, tmp_path, capsys, about: str):
    shutil.copytree(place / "model", tmp_path / "model", ignore=shutil.ignore_patterns("config.json", "*.safetensors"))
    (tmp_path / "model" / "adapter_config.json").write_text(about)
    refused(capsys, arguments(place, tmp_path / "out", model=str(tmp_path / "model")), str(tmp_path / "model"))
    assert not (tmp_path / "out").exists()


def test_an_unknown_architecture_is_named(place, tmp_path, capsys):
    shutil.copytree(place / "model", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"model_type": "no-such-architecture"}))
    args = arguments(place, tmp_path / "out", model=str(tmp_path / "model"))
    refused(capsys, args, "no-such-architecture")


def test_weights_cut_short_are_named_before_the_run_begins(place, tmp_path, capsys):
    shutil.copytree(place / "model", tmp_path / "model")
    os.truncate(tmp_path / "model" / "model.safetensors", 3000)
    args = arguments(place, tmp_path / "out", model=str(tmp_path / "model"))
    refused(capsys, args, "model.safetensors", "3000 bytes instead of")


def test_a_hub_model_without_network(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(capsys, arguments(place, tmp_path / "out", model="no-such-org/no-such-model"), "no-such-org/no-such-model")
    assert not (tmp_path / "out").exists()


def test_missing_data(place, tmp_path, capsys):
    refused(capsys, arguments(place, tmp_path / "out", data=str(tmp_path / "nowhere.jsonl")), "nowhere.jsonl")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu(place, tmp_path, capsys):
    refused(capsys, arguments(place, tmp_path / "out", device="cuda"), "cuda")
