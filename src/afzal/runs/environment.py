"""Versions and hardware of a run, from the installed packages' metadata and the operating system.

Nothing heavy is imported. torch reports the devices only if it is already loaded.
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
    """``{"versions": {...}, "hardware": {...}}``: memory in bytes, ``cpus`` usable by this process."""
    return {"versions": versions(), "hardware": hardware()}


def versions() -> dict[str, str]:
    """Versions of Afzal, Python and the installed packages that affect results."""
    base = {"afzal": __version__, "python": platform.python_version()}
    return base | {name: version for name in PACKAGES if (version := installed(name))}


def installed(package: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def extras() -> dict[str, list[str]]:
    """Afzal's optional extras, each with its missing packages (empty: the extra is installed)."""
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
    """Platform, CPUs, memory and GPUs."""
    return {
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cpus": usable_cpus(),
        "memory_bytes": memory_bytes(),
        "gpus": gpus(),
    }


def usable_cpus() -> int:
    """CPUs that this process may use: its affinity, not the machine's count, limited by the container's quota (1.5 CPUs
    count as 2)."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota(Path("/sys/fs/cgroup"))
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))


def _cpu_quota(group: Path) -> float | None:
    """The container's CPU quota in CPUs (``limits.cpu``, ``--cpus``); None if there is no limit."""
    v2 = _read(group / "cpu.max").split()
    v1 = [_read(group / "cpu" / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    quota, period = v2 if len(v2) == 2 else v1
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def memory_bytes() -> int | None:
    """Memory of the machine, or of the container or job if that is less; None if unknown."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    return min([total, *(group.limit for group in own_memory_limits(Path("/sys/fs/cgroup")))])


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """The memory limit of one control group in bytes, the file with the memory in use, and the statistics file with the
    key of its inactive file cache."""

    limit: int
    used: Path
    stat: Path
    cache: str


_GROUPS = (  # per cgroup version: folder, limit, usage, and the statistics' key of the inactive file cache
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def memory_limits(root: Path, membership: str) -> list[MemoryLimit]:
    """The memory limits of a process: those of its control group and all parent groups, cgroup v2 and v1.

    Args:
        membership: content of ``/proc/self/cgroup``. Inside a container, the groups named there may be invisible, and
            the root is the container's own group.
    """
    limits = []
    for kind, limit, used, cache in _GROUPS:
        names = _group_of(membership, kind)
        for depth in range(len(names), -1, -1):
            folder = Path(root, kind, *names[:depth])
            value = _read(folder / limit).strip()
            limits += [MemoryLimit(int(value), folder / used, folder / "memory.stat", cache)] if value.isdigit() else []
    return limits


def _group_of(membership: str, kind: str) -> tuple[str, ...]:
    """The path of a process's group as names, from the lines ``number:kinds:/path``."""
    for line in membership.splitlines():
        _, _, rest = line.partition(":")
        kinds, _, path = rest.partition(":")
        if kind in kinds.split(","):
            return tuple(name for name in path.split("/") if name not in ("", ".."))
    return ()


def own_memory_limits(root: Path) -> list[MemoryLimit]:
    """The memory limits of this process."""
    return memory_limits(root, _read("/proc/self/cgroup"))


def gpus() -> list[str]:
    """Names of the GPUs: as torch sees them if it is loaded, else as the driver lists them."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "cuda"):
        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    listed = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    names = (re.search(r"^Model:\s*(.+)$", _read(path), re.MULTILINE) for path in listed)
    return [name.group(1).strip() for name in names if name]


def _cpu_name() -> str:
    match = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return match.group(1).strip() if match else platform.processor() or platform.machine()


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
