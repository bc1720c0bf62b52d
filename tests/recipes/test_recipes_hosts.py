"""Two hosts: network namespaces with separate names and addresses, joined by a cable that can be pulled."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from helpers_ranks import run_ranks
from helpers_runs import command_line
from test_recipes_ranks import given
from test_recipes_ranks_kill import QUIET, bits, reached

NAMES = ("first-host", "second-host")
NETWORK = "10.231.7"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


@dataclass
class Host:
    """A namespace in place of a machine: its processes see its name and addresses and nothing of the others."""

    number: int
    space: str
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def make(self, cable: str) -> None:
        ip("netns", "add", self.space)
        lines = ["127.0.0.1 localhost", *(f"{NETWORK}.{i + 1} {name}" for i, name in enumerate(NAMES))]
        self.files.mkdir(parents=True)
        (self.files / "hosts").write_text("\n".join(lines) + "\n")
        ip("link", "set", cable, "netns", self.space)
        ip("-n", self.space, "link", "set", cable, "name", "eth0")
        ip("-n", self.space, "addr", "add", f"{NETWORK}.{self.number + 1}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", self.space, "link", "set", device, "up")

    @property
    def files(self) -> Path:
        """Files that `ip netns exec` mounts over ``/etc``."""
        return Path("/etc/netns") / self.space

    def start(self, line: list[str], log: Path, **environment: str) -> subprocess.Popen[bytes]:
        inside = ["ip", "netns", "exec", self.space, "unshare", "--uts", "sh", "-c", 'hostname "$0"; exec "$@"']
        command = [*inside, NAMES[self.number], *line]
        with log.open("ab") as out:
            process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=out, stderr=out)
        self.started.append(process)
        return process

    def dies(self) -> None:
        """Kill all processes at the same time, then cut the cable."""
        listing = subprocess.run(["ip", "netns", "pids", self.space], capture_output=True, check=True, text=True)
        for pid in map(int, listing.stdout.split()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        ip("-n", self.space, "link", "set", "eth0", "down")

    def comes_back(self) -> None:
        ip("-n", self.space, "link", "set", "eth0", "up")

    def remove(self) -> None:
        with suppress(subprocess.CalledProcessError):
            self.dies()
        for process in self.started:
            process.wait(20)
        with suppress(subprocess.CalledProcessError):
            ip("netns", "del", self.space)
        shutil.rmtree(self.files, ignore_errors=True)


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("hosts are network namespaces, which take root, ip and unshare")
    made = [Host(i, f"afzal{os.getpid()}-{i}") for i in range(len(NAMES))]
    cables = [f"afz{os.getpid()}-{i}" for i in range(len(NAMES))]
    try:
        ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
        ip("netns", "add", f"{made[0].space}-trial")
        ip("netns", "del", f"{made[0].space}-trial")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    try:
        for host, cable in zip(made, cables, strict=True):
            host.make(cable)
        yield made
    finally:
        for host in made:
            host.remove()


def until(reached_it: Callable[[], bool], processes: list[subprocess.Popen[bytes]]) -> None:
    for _ in range(6000):
        if reached_it():
            return
        assert all(process.poll() is None for process in processes), "a launcher has ended"
        time.sleep(0.05)
    raise AssertionError("nothing happened for five minutes")


@pytest.mark.slow
def test_hosts_that_die_come_back_and_the_run_ends_with_the_same_bits(tmp_path, hosts):
    """The second host dies and comes back: the run continues. The first one dies, and with it the rendezvous:
    the same commands finish the run. An uninterrupted run of two ranks on one machine has the same bits."""
    many: dict[str, Any] = {"epochs": 6.0, "save_every_steps": 2, "keep_checkpoints": 3, **QUIET}
    whole, killed = (given(tmp_path, out, "dpo", **many) for out in ("whole", "killed"))
    assert run_ranks(command_line("dpo", whole), 2) == [0, 0]
    rendezvous = ["--rdzv-id", "run", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{NAMES[0]}:29500"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *rendezvous]
    line = [*launcher, "--max-restarts", "3", "-m", "afzal", *command_line("dpo", killed)]
    environment = {
        "GLOO_SOCKET_IFNAME": "eth0",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # docs/devices.md says why
        "OMP_NUM_THREADS": "1",
    }
    logs = [tmp_path / f"{name}.log" for name in NAMES]

    def start(host: Host) -> subprocess.Popen[bytes]:
        return host.start(line, logs[host.number], **environment)

    first, second = hosts
    running = [start(host) for host in hosts]
    until(lambda: reached(tmp_path / "killed") >= 7, running)
    second.dies()
    second.comes_back()
    running = [running[0], start(second)]
    until(lambda: reached(tmp_path / "killed") >= 17, running)
    first.dies()
    second.dies()
    at = reached(tmp_path / "killed")
    for host in hosts:
        host.comes_back()
    running = [start(host) for host in hosts]
    codes = [process.wait(300) for process in running]
    said = "\n".join(log.read_text() for log in logs)
    assert codes == [0, 0], said
    assert 17 <= at < reached(tmp_path / "whole")
    assert bits(tmp_path / "killed") == bits(tmp_path / "whole"), said
