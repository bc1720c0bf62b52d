"""An environment on top of the present one, with TRL and what Afzal needs: the torch of the machine stays."""

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
    wanted = {"what Afzal needs": missing(_requirements()), "TRL": ["trl==1.16.0"]}
    refusals = {what: _installed(pip_install(python, kept, wheels, names)) for what, names in wanted.items() if names}
    refusals = {what: refusal for what, refusal in refusals.items() if refusal}
    if refusals and wheels:
        # pip refuses all of it for one need that is off by a version; most of it may work all the same
        _installed([*pip_install(python, kept, wheels, []), "--no-deps", *map(str, sorted(wheels.glob("*.whl")))])
    return python, refusals


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
