"""What a run ran on: versions from the installed packages' own records, hardware from the operating system.

Nothing heavy is imported for it. Only where torch is loaded already is it asked for the devices.
"""

from __future__ import annotations

import math
import os
import platform
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from afzal._version import __version__

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "safetensors",
    "tokenizers",
    "datasets",
    "pyarrow",
    "huggingface-hub",
    "numpy",
    "scipy",
    "pydantic",
)

_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)[^;]*;.*\bextra\s*==\s*['\"]([^'\"]+)['\"]")


def environment() -> dict[str, dict[str, Any]]:
    """``{"versions": {...}, "hardware": {...}}``: memory in bytes, ``cpus`` those that this process may use."""
    return {"versions": versions(), "hardware": hardware()}


def versions() -> dict[str, str]:
    """Versions of Afzal, Python and the installed packages that numbers depend on."""
    found = {"afzal": __version__, "python": platform.python_version()}
    return found | {name: version for name in PACKAGES if (version := installed(name))}


def installed(package: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def extras() -> dict[str, list[str]]:
    """Afzal's optional extras and the packages that each one still lacks (none: it is there)."""
    try:
        requirements = metadata.requires("afzal") or []
    except metadata.PackageNotFoundError:
        return {}
    missing: dict[str, list[str]] = {}
    for match in filter(None, map(_REQUIREMENT.match, requirements)):
        package, extra = match.groups()
        missing.setdefault(extra, []).extend([] if installed(package) else [package])
    return missing


def hardware() -> dict[str, Any]:
    """Machine, processors, memory and graphics processors."""
    return {
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cpus": usable_cpus(),
        "memory_bytes": memory_bytes(),
        "gpus": gpus(),
    }


def usable_cpus() -> int:
    """Processors that this process may use: its affinity, not the machine's count, within a container's share (1.5 of
    them count as 2)."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = _share(Path("/sys/fs/cgroup"))
    return own if share is None else max(1, min(own, math.ceil(share)))


def _share(group: Path) -> float | None:
    """Processors' worth of time that a container gets (``limits.cpu``, ``--cpus``); None where it has no limit."""
    second = _read(group / "cpu.max").split()
    first = [_read(group / "cpu" / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    quota, period = second if len(second) == 2 else first
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def memory_bytes() -> int | None:
    """Memory of the machine, or of the container or job when that is less; None where unknown."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    return min([total, *(group.limit for group in own_memory_limits(Path("/sys/fs/cgroup")))])


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """The limit of one control group: its bytes, the file that says how many are in use, and the file and the name of
    those that hold files which were not used lately."""

    limit: int
    used: Path
    stat: Path
    cache: str


_GROUPS = (  # by kind: the folder, the limit, the use, and what the statistics call files not used lately
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def memory_limits(root: Path, membership: str) -> list[MemoryLimit]:
    """The limits that hold for a process: that of its own control group and of every one above it, of either kind.

    Args:
        membership: content of ``/proc/self/cgroup``. Inside a container the groups that it names may not be visible,
            and the root is the container's own.
    """
    found = []
    for kind, limit, used, cache in _GROUPS:
        own = _group_of(membership, kind)
        for depth in range(len(own), -1, -1):
            folder = Path(root, kind, *own[:depth])
            said = _read(folder / limit).strip()
            found += [MemoryLimit(int(said), folder / used, folder / "memory.stat", cache)] if said.isdigit() else []
    return found


def _group_of(membership: str, kind: str) -> tuple[str, ...]:
    """The names on the way to the group of a process, from the lines ``number:kinds:/path``."""
    for line in membership.splitlines():
        _, _, rest = line.partition(":")
        kinds, _, path = rest.partition(":")
        if kind in kinds.split(","):
            return tuple(name for name in path.split("/") if name not in ("", ".."))
    return ()


def own_memory_limits(root: Path) -> list[MemoryLimit]:
    """The limits that hold for this process."""
    return memory_limits(root, _read("/proc/self/cgroup"))


def gpus() -> list[str]:
    """Names of the graphics processors: as torch sees them when it is loaded, else as the driver lists them."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "cuda"):
        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    listed = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    names = (re.search(r"^Model:\s*(.+)$", _read(path), re.MULTILINE) for path in listed)
    return [name.group(1).strip() for name in names if name]


def _cpu_name() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
