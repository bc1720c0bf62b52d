"""The memory of tensors on a CPU, while a model trains or answers.

The allocator of glibc gives large blocks back to the system as they are freed. The next tensor of that size is then
faulted in page by page and cleared, which costs more than much of the arithmetic: an update of a model with 58 M
weights takes 60,000 to 100,000 page faults. A training asks for the same sizes again and again, so freed memory is
kept for it.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # the numbers of mallopt(3)
_EVERYTHING = 2**31 - 1
_AS_EVER = 2**26, 2**16  # bytes at the heap's end that are kept, and blocks that may be mapped one by one

_depth = 0


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Freed memory stays with the process inside the block; at the end of the outermost one it goes back.

    The peak stays about what it was: blocks are reused, not added. This acts on the heap of the main thread, where
    trainings run. Nothing happens where the C library is not glibc, or another allocator is preloaded.
    """
    global _depth
    libc = _glibc()
    if libc is None:
        yield
        return
    _depth += 1
    if _depth == 1:
        _set(libc, _EVERYTHING, 0)
    try:
        yield
    finally:
        _depth -= 1
        if _depth == 0:
            _set(libc, *_AS_EVER)
            libc.malloc_trim(0)


def _set(libc: Any, kept: int, mapped: int) -> None:
    libc.mallopt(_TRIM_THRESHOLD, kept)
    libc.mallopt(_MMAP_MAX, mapped)


@cache
def _glibc() -> Any:
    if platform.libc_ver()[0] != "glibc":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
