"""How the C library keeps the memory of requests: what is small at hand, what is large not at all.

By itself glibc moves its thresholds with what a program frees. Whether a request of 1 MB costs a
page fault for every 4 KB of it, twice over, was a matter of luck.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any

__all__ = ["LARGE", "give_back", "prepare"]

LARGE = 2 * 1024 * 1024  # bytes

# Names and numbers of malloc.h; bytes. One arena: the others would keep what only one thread uses.
_SETTINGS = {
    "M_TRIM_THRESHOLD": (-1, 8 * 1024 * 1024),
    "M_MMAP_THRESHOLD": (-3, LARGE),
    "M_ARENA_MAX": (-8, 1),
}


def prepare() -> None:
    """Fix the thresholds, before there are threads; ``give_back`` does it too, as far as it goes.

    An operator's own ``MALLOC_`` variables and ``GLIBC_TUNABLES`` are left alone.
    """
    _glibc()


def give_back() -> None:
    """Return what is free by now: of a request just received, two copies that grpc made of it.

    Without it the peak of a 10 MB create is 40 to 50 MB, and with it 30. It takes milliseconds, so
    it is for requests of ``LARGE`` bytes and more. Only glibc can do it, and only glibc needs it.
    """
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


@functools.cache
def _glibc() -> Any:
    """Return the C library, with its thresholds fixed, or None where there is another one."""
    library = ctypes.CDLL(None) if os.name == "posix" else None
    if library is None or not hasattr(library, "malloc_trim") or not hasattr(library, "mallopt"):
        return None
    if not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        for number, value in _SETTINGS.values():
            library.mallopt(number, value)
    return library
