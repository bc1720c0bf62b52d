"""How many processors a process may use: the machine's, its affinity's, or a container's share of them."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

import pytest

from afzal.runs.environment import usable_cpus

environment = import_module("afzal.runs.environment")  # in the package its name refers to its function


def _group(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content + "\n")
    return folder


@pytest.mark.parametrize(
    ("files", "share"),
    [
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "50000 100000"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu.max": ""}, None),
        ({}, None),
    ],
)
def test_a_containers_share_is_read_of_both_kinds_of_groups(files: dict[str, str], share: float | None, tmp_path: Path):
    assert environment._cpu_quota(_group(tmp_path, files)) == share


@pytest.mark.parametrize(("share", "cpus"), [(None, 6), (2.0, 2), (1.5, 2), (0.2, 1), (64.0, 6)])
def test_processors_are_those_of_the_affinity_and_no_more_than_the_share(
    share: float | None, cpus: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr(environment, "_cpu_quota", lambda _: share)
    assert usable_cpus() == cpus


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"memory.max": "max"}, None),
        ({"memory.max": "4000000000"}, 4_000_000_000),
        ({"memory/memory.limit_in_bytes": "3000000000"}, 3_000_000_000),
        ({"memory/memory.limit_in_bytes": "9223372036854771712"}, 9_223_372_036_854_771_712),
        ({}, None),
    ],
)
def test_a_containers_memory_is_read_of_both_kinds_of_groups(files: dict[str, str], limit: int | None, tmp_path: Path):
    groups = environment.memory_limits(_group(tmp_path, files), "0::/\n")
    assert [group.limit for group in groups] == ([] if limit is None else [limit])


NESTED = "4:memory,x:/slurm/job_7/step_0\n1:cpu:/\n0::/slurm/job_7/step_0\n"


@pytest.mark.parametrize(
    ("files", "limits"),
    [
        (
            {"slurm/job_7/step_0/memory.max": "max", "slurm/job_7/memory.max": "2000", "memory.max": "9000"},
            [2000, 9000],
        ),
        ({"slurm/job_7/step_0/memory.max": "5000", "slurm/memory.max": "3000"}, [5000, 3000]),
        ({"slurm/job_8/memory.max": "1000"}, []),
        ({f"memory/slurm/job_7/{name}": "4000" for name in ("memory.limit_in_bytes", "other")}, [4000]),
        ({"memory/memory.limit_in_bytes": "3000"}, [3000]),
    ],
)
def test_limits_of_all_groups_above_a_process_are_read(files: dict[str, str], limits: list[int], tmp_path: Path):
    groups = environment.memory_limits(_group(tmp_path, files), NESTED)
    assert [group.limit for group in groups] == limits
    assert all(group.used.parent == group.stat.parent for group in groups)


def test_memory_is_the_smallest_of_the_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environment, "own_memory_limits", lambda _: environment.memory_limits(tmp_path, NESTED))
    _group(tmp_path, {"slurm/job_7/step_0/memory.max": "5000", "slurm/job_7/memory.max": "4000"})
    assert environment.memory_bytes() == 4000
