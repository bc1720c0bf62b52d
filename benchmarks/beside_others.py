"""The same DPO job by Afzal, TRL's command line and LLaMA-Factory: what the user types, and how long it takes.

20 updates of 16 story pairs on a model with 260,000 weights, in float32 on the CPU, each command with a YAML file. Each
program also runs with a tenth of the pairs held out and evaluated after every second update, Afzal's default here.

.venv/bin/python -m benchmarks.beside_others --trl .venv-trl/bin/trl --llamafactory .venv-lf/bin/llamafactory-cli \
  --out benchmarks/results/import/beside-others.json --page docs/import.md
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from benchmarks.machine import about_run
from benchmarks.sentiment.valence import shared

UPDATES, BATCH, LR, BETA = 20, 16, 1e-4, 0.1
SOURCES = Path(__file__).parents[1] / "src"
FIRST = re.compile(r"\bstep 1/|['\"]loss['\"]:")
START, END = "<!-- beside others -->", "<!-- end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trl", help="TRL's command, in a separate environment")
    parser.add_argument("--llamafactory", help="llamafactory-cli, in a separate environment")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--page", type=Path, help="page whose table is updated")
    options = parser.parse_args()
    figures: dict[str, Any] = {
        "about": about_run("benchmarks.beside_others", ["afzal", "torch"], threads=1),
        "runs": {},
    }
    programs = {"afzal": "afzal", "trl": options.trl, "llamafactory": options.llamafactory}
    with tempfile.TemporaryDirectory() as installed:
        install(Path(installed))
        for name in NAMES:
            program = programs[name.partition(",")[0]]
            if program is not None:
                figures["runs"][name] = [run(name, program, installed) for _ in range(options.repeats)]
                print(row(name, figures["runs"][name]), flush=True)
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if options.page:
        renew(options.page, figures)


def install(folder: Path) -> None:
    """Install Afzal into ``folder`` as pip does: its files and their bytecode, which a working tree may lack."""
    shutil.copytree(SOURCES / "afzal", folder / "afzal", ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(folder / "afzal", quiet=1)


def run(name: str, program: str, installed: str) -> dict[str, Any]:
    """One run in a new folder; wall and processor seconds, to the first update and to the end."""
    with tempfile.TemporaryDirectory() as folder:
        settings = write(Path(folder), name)
        file = Path(folder, "dpo.yaml")
        file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        arguments = ["dpo", "--config"] if name.startswith("trl") else ["train"]
        start = [sys.executable, "-m", "afzal"] if program == "afzal" else [program]
        seconds = timed([*start, *arguments, file.name], Path(folder), installed)
        typed = " ".join([Path(program).name, *arguments, file.name])
        return {"typed": typed, "lines": len(file.read_text().splitlines()), **seconds}


def write(folder: Path, name: str) -> dict[str, Any]:
    """Write the data in the program's format, and return the settings for its YAML file."""
    source = shared() / "derived" / "stories_valence_pairs.jsonl"
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = str(shared() / "models" / "stories260k")
    held_out = name.endswith("held out")
    if name.startswith("afzal"):
        settings = {"method": "dpo", "model": model, "data": "pairs.jsonl", "out": "run", "batch_size": BATCH}
        settings |= {"max_steps": UPDATES, "lr": LR, "beta": BETA, "dtype": "fp32"}
        return settings | ({} if held_out else {"eval_fraction": 0.0})
    trainer = {"output_dir": "run", "per_device_train_batch_size": BATCH, "max_steps": UPDATES, "learning_rate": LR}
    trainer |= {"warmup_steps": UPDATES // 10, "logging_steps": 1, "bf16": False, "use_cpu": True, "report_to": "none"}
    if held_out:
        trainer |= {"eval_strategy": "steps", "eval_steps": UPDATES // 10, "per_device_eval_batch_size": BATCH}
    if name.startswith("trl"):
        trainer |= {"test_split_size": 0.1} if held_out else {}
        data = {"datasets": [{"path": "json", "data_files": "pairs.jsonl", "split": "train"}]}
        return {"model_name_or_path": model, **data, "beta": BETA, **trainer}
    entry = {"file_name": "pairs.jsonl", "ranking": True}
    entry |= {"columns": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}}
    (folder / "dataset_info.json").write_text(json.dumps({"pairs": entry}), encoding="utf-8")
    settings = {"model_name_or_path": model, "stage": "dpo", "do_train": True, "finetuning_type": "full"}
    settings |= {"dataset": "pairs", "dataset_dir": ".", "template": "empty", "cutoff_len": 1024, "pref_beta": BETA}
    return settings | ({"val_size": 0.1} if held_out else {}) | trainer


def timed(command: Sequence[str], folder: Path, installed: str) -> dict[str, float]:
    """Seconds of a command that prints a line per update.

    Raises:
        RuntimeError: the command fails, or no line reports an update; with the end of its output.
    """
    threads = {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    quiet = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "DISABLE_VERSION_CHECK": "1"}
    environment = {**os.environ, **threads, **quiet, "PYTHONPATH": installed}
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=folder, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    first: dict[str, float] = {}
    output: list[str] = []
    for line in process.stdout:
        output.append(line)
        if not first and FIRST.search(line):
            first = {"first_clock": time.monotonic() - began, "first_processor": processor_seconds(process.pid)}
    _, status, usage = os.wait4(process.pid, 0)
    if status or not first:
        raise RuntimeError(f"{' '.join(command)}: {''.join(output[-30:])}")
    return {**first, "clock": time.monotonic() - began, "processor": usage.ru_utime + usage.ru_stime}


def processor_seconds(session: int) -> float:
    """Processor time that a session's processes have used so far, including finished children."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # the process has just ended
        if int(fields[3]) == session:
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


NAMES = {
    "afzal, held out": "Afzal, 10 evaluations with samples and KL, and a page",
    "trl, held out": "TRL 1.16, 10 evaluations",
    "llamafactory, held out": "LLaMA-Factory 0.9.5, 10 evaluations",
    "afzal": "Afzal, nothing held out, and a page",
    "trl": "TRL 1.16, nothing held out",
    "llamafactory": "LLaMA-Factory 0.9.5, nothing held out",
}


def row(name: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """A row of the table: medians."""
    middle = {key: median(r[key] for r in runs) for key in ("first_processor", "processor", "first_clock", "clock")}
    times = (f"{middle[f'first_{k}']:.1f} | {middle[k]:.1f}" for k in ("processor", "clock"))
    return f"| {NAMES[name]} | `{runs[0]['typed']}` | {runs[0]['lines']} | {' | '.join(times)} |"


def table(figures: Mapping[str, Any]) -> str:
    """The table as Markdown, with the conditions of the measurement."""
    about = figures["about"]
    seconds = "processor s to the first update | to the end | clock s to the first update | to the end"
    head = f"| | typed | lines of YAML | {seconds} |"
    lines = [head, "|---|---|---:|---:|---:|---:|---:|", *(row(name, runs) for name, runs in figures["runs"].items())]
    repeats = len(next(iter(figures["runs"].values())))
    note = (
        f"{UPDATES} updates of {BATCH} pairs of short stories, a model of 260,000 weights, float32, one thread; "
        f"medians of {repeats} runs, {about['date']}, {about['device'].partition(' (')[0]}, "
        f"torch {about['versions']['torch']}. {load_note(about['load'])}"
    )
    return "\n".join([*lines, "", note])


def load_note(load: float) -> str:
    """A sentence on the machine's load during the measurement."""
    if load < 1:
        return "Nothing else ran at the same time."
    return f"Other work ran at the same time (load {load:.0f}); it affects clock times, but hardly processor times."


def renew(page: Path, figures: Mapping[str, Any]) -> None:
    """Put the table between its markers."""
    before, _, rest = page.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{START}\n{table(figures)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
