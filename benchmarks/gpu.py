"""Every benchmark of the training step on a CUDA GPU, in one command, with the torch and transformers of the machine.

    python -m benchmarks.gpu --out OUT                      # TRL from the package index
    python -m benchmarks.gpu --out OUT --wheels WHEELS      # TRL from a folder of wheels, no network
    python -m benchmarks.gpu --out OUT --device cpu --tiny  # the same, small, to try it out

Makes OUT/.venv on top of the present environment, puts TRL into it, and writes OUT/*.json and OUT/README.md. Weights
are random and made on the spot. What cannot be installed or run is left out, with its reason in the files. Exit code 1
when a benchmark of Afzal itself failed. Figures that are to stay go to benchmarks/results: see `benchmarks/table.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks import table
from benchmarks.machine import about_run

ROOT = Path(__file__).resolve().parents[1]
OLDEST = {"torch": (2, 11), "transformers": (5, 17)}
TINY = ("--width", "128", "--layers", "2", "--repeats", "1")
WIDE = {
    "cpu": ("--width", "768", "--layers", "12", "--heads", "12", "--kv-heads", "12"),
    "cuda": ("--width", "1024", "--layers", "16", "--heads", "16", "--kv-heads", "16", "--pairs", "16"),
}


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a benchmark: the name of its file of figures, its module, and its arguments."""

    name: str
    module: str
    arguments: tuple[str, ...]


def main() -> int:
    given = _arguments()
    if problems := too_old(installed(OLDEST)):
        sys.exit("\n".join(problems))
    given.out.mkdir(parents=True, exist_ok=True)
    python, refusals = prepare(given.out / ".venv", given.wheels)
    for name, refusal in refusals.items():
        print(f"{name} could not be installed: {refusal}", flush=True)
    ended = {job.name: _run(job, python, given.out) for job in jobs(given.device, small=given.tiny)}
    about = about_run("benchmarks.gpu", ["afzal", *OLDEST], threads=os.cpu_count() or 1)
    record = {"about": about, "not installed": refusals, "runs": ended}
    (given.out / f"run-{given.device}.json").write_text(json.dumps(record, indent=2) + "\n")
    page = table.page(table.read(given.out))
    (given.out / "README.md").write_text(page, encoding="utf-8")
    print(page)
    return int(any(end != "done" for end in ended.values()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install TRL from; nothing is downloaded then")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a small model and few pairs, to try the command out")
    return parser.parse_args()


def jobs(device: str, *, small: bool) -> list[Job]:
    """The benchmarks to run: every shape on the bench's model, three on a wider one, and growth."""
    common = ("--device", device, "--force")
    size = (*TINY, "--heads", "4", "--kv-heads", "2", "--vocabulary", "2000", "--pairs", "2", "--no-memory")
    step = lambda name, *more: Job(  # noqa: E731
        f"dpo-step-{device}-{name}", "benchmarks.dpo_step", (*common, *more, *(size if small else ()))
    )
    growth = (*TINY, "--shrink", "16") if small else ("--width", "512", "--layers", "8", "--dtype", "bf16")
    return [
        *(step(shape, "--shapes", shape) for shape in ("hh", "tldr", "uf", "long")),
        step("wide", "--shapes", "hh", "tldr", "uf", *WIDE[device]),
        Job(f"growth-{device}", "benchmarks.growth", (*common, *growth)),
    ]


def installed(packages: Mapping[str, object]) -> dict[str, str]:
    """Version of each package, "" where it is not installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def too_old(versions: Mapping[str, str]) -> list[str]:
    """A sentence for each package that the benchmarks need in a newer version."""
    needed = {name: ".".join(map(str, oldest)) for name, oldest in OLDEST.items()}
    return [
        f"{name} {needed[name]} or newer is needed, and {f'{found} is' if found else 'none is'} installed"
        for name, found in versions.items()
        if release(found) < OLDEST[name]
    ]


def release(text: str) -> tuple[int, ...]:
    """The numbers a version begins with: ``2.13.0+cpu`` is (2, 13, 0), and nothing is ()."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def prepare(folder: Path, wheels: Path | None) -> tuple[Path, dict[str, str]]:
    """An environment on top of the present one with TRL in it: its interpreter, and what is not there and why.

    Packages of the present environment are seen through a path file, since ``--system-site-packages`` would show those
    of the interpreter below, which are others where the present environment is itself a virtual one. pip is the present
    one's, and is told to keep torch and transformers as they are.
    """
    venv.create(folder, system_site_packages=True, with_pip=False, symlinks=os.name != "nt")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    (packages / "present-environment.pth").write_text("".join(f"{path}\n" for path in package_paths(sys.path)))
    kept = folder / "keep.txt"
    kept.write_text("".join(f"{name}=={found}\n" for name, found in installed(OLDEST).items()))
    wanted = {"TRL": ["trl"], "what Afzal needs": missing(_requirements())}
    refusals = {what: _installed(pip_install(python, kept, wheels, names)) for what, names in wanted.items() if names}
    return python, {what: refusal for what, refusal in refusals.items() if refusal}


def _installed(command: Sequence[str]) -> str:
    """Why pip could not install, or ""."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else last_line(done.stderr or done.stdout)


def pip_install(python: Path, kept: Path, wheels: Path | None, names: Sequence[str]) -> list[str]:
    """The command that installs packages for ``python``; ``kept`` states versions that must not change."""
    source = ["--no-index", "--find-links", str(wheels)] if wheels else []
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    return [*pip, "install", "--quiet", "--constraint", str(kept), *source, *names]


def missing(requirements: Sequence[str]) -> list[str]:
    """Those of Afzal's own requirements that the present environment lacks altogether."""
    names = {re.split(r"[^\w.-]", requirement, maxsplit=1)[0]: requirement for requirement in requirements}
    return [names[name] for name, found in installed(names).items() if not found]


def package_paths(path: Sequence[str]) -> Iterator[str]:
    """Folders of installed packages on a module search path."""
    return (entry for entry in path if Path(entry).name in ("site-packages", "dist-packages"))


def last_line(text: str) -> str:
    """What pip says in the end."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "no reason given"


def _requirements() -> list[str]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


def _run(job: Job, python: Path, out: Path) -> str:
    """``done``, or how it ended; its figures are then missing from the table."""
    command = [str(python), "-m", job.module, *job.arguments, "--out", str((out / f"{job.name}.json").resolve())]
    print(" ".join(command), flush=True)
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    quiet = {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | quiet, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
    return "done" if done.returncode == 0 else f"exit code {done.returncode}: {last_line(done.stderr)}"


if __name__ == "__main__":
    sys.exit(main())
