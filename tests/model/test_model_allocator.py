"""Freed memory is kept for the next tensor of a training, and goes back at its end."""

import json
import platform
import subprocess
import sys

import pytest

from afzal.model import allocator
from afzal.model.allocator import freed_memory_kept

BYTES = 2**26
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")

PROGRAM = f"""
import json, resource
from afzal.model.allocator import freed_memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytes(bytearray({BYTES}))  # an allocation as a tensor's
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

outside = [faults() for _ in range(3)][-1]
with freed_memory_kept():
    faults()
    with freed_memory_kept():
        faults()
    inside, kept = faults(), resident()  # after an inner block's end it is still kept
print(json.dumps([outside, inside, kept - resident(), [faults() for _ in range(3)][-1]]))
"""


@glibc
def test_freed_memory_is_used_again_without_page_faults():
    """In a process of its own, and in its main thread, where trainings run: other threads have other heaps."""
    said = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout
    outside, inside, returned, after = json.loads(said)
    assert outside > 1000
    assert inside < outside / 100
    assert returned > BYTES / 2, "at the end it goes back"
    assert after > 1000, "and the allocator is as it was"


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator, "_glibc", lambda: None)
    with freed_memory_kept():
        assert allocator._depth == 0


@glibc
def test_an_error_ends_the_block_too():
    with pytest.raises(ValueError, match="broken"), freed_memory_kept():
        raise ValueError("broken")
    assert allocator._depth == 0
