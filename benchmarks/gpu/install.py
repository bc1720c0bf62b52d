"""Create an environment on top of the current one, with TRL and Afzal's requirements, keeping the machine's torch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OLDEST = {"torch": (2, 11), "transformers": (5, 17)}


def installed(packages: Mapping[str, object]) -> dict[str, str]:
    """Version of each package, "" if it is not installed."""
    versions = {}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = ""
    return versions


def too_old(versions: Mapping[str, str]) -> list[str]:
    """A sentence for each package that is older than the benchmarks need."""
    needed = {name: ".".join(map(str, oldest)) for name, oldest in OLDEST.items()}
    return [
        f"{name} {needed[name]} or newer is needed, and {f'{number} is' if number else 'none is'} installed"
        for name, number in versions.items()
        if release(number) < OLDEST[name]
    ]


def release(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: ``2.13.0+cpu`` gives (2, 13, 0), an empty text ()."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def prepare(folder: Path, wheels: Path | None) -> tuple[Path, dict[str, str]]:
    """Create an environment with TRL on top of the current one; returns its interpreter, and why installs failed.

    A path file makes the current environment's packages visible, since ``--system-site-packages`` would show those of
    the base interpreter, which differ if the current environment is itself virtual. The current pip is used, with
    constraints that keep torch and transformers as they are.
    """
    venv.create(folder, system_site_packages=True, with_pip=False, symlinks=os.name != "nt")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    (packages / "present-environment.pth").write_text("".join(f"{path}\n" for path in package_paths(sys.path)))
    constraints = folder / "keep.txt"
    constraints.write_text("".join(f"{name}=={number}\n" for name, number in installed(OLDEST).items()))
    wanted = {"what Afzal needs": missing(_requirements()), "TRL": ["trl==1.16.0"]}
    refusals = {
        what: _installed(pip_install(python, constraints, wheels, names)) for what, names in wanted.items() if names
    }
    refusals = {what: refusal for what, refusal in refusals.items() if refusal}
    if refusals and wheels:
        # pip refuses everything if one requirement is off by a version; most of it may still work
        _installed(
            [*pip_install(python, constraints, wheels, []), "--no-deps", *map(str, sorted(wheels.glob("*.whl")))]
        )
    return python, refusals


def _installed(command: Sequence[str]) -> str:
    """Run a pip command; returns why it failed, or ""."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else last_line(done.stderr or done.stdout)


def pip_install(python: Path, constraints: Path, wheels: Path | None, names: Sequence[str]) -> list[str]:
    """The command that installs packages for ``python``; ``constraints`` lists versions that must not change."""
    source = ["--no-index", "--find-links", str(wheels)] if wheels else []
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    return [*pip, "install", "--quiet", "--constraint", str(constraints), *source, *names]


def missing(requirements: Sequence[str]) -> list[str]:
    """Afzal's requirements that are not installed in any version."""
    names = {re.split(r"[^\w.-]", requirement, maxsplit=1)[0]: requirement for requirement in requirements}
    return [names[name] for name, number in installed(names).items() if not number]


def package_paths(path: Sequence[str]) -> Iterator[str]:
    """Package folders on a module search path."""
    return (entry for entry in path if Path(entry).name in ("site-packages", "dist-packages"))


def last_line(text: str) -> str:
    """The last line of pip's output."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "no reason given"


def _requirements() -> list[str]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
