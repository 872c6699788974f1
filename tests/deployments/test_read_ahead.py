"""Files that are read ahead are in the page cache, which the kernel is asked for."""

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from deployments.read_ahead import BLOCK_BYTES, read_ahead

SIZE = BLOCK_BYTES + mmap.PAGESIZE
"""More than one block, and not a whole number of them."""


def cached_pages(path: Path) -> int:
    """How many pages of a file are in memory, by mincore(2)."""
    # Private and writable, so that ctypes sees its address; nothing is written.
    with (
        path.open("rb") as file,
        mmap.mmap(
            file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
        ) as mapped,
    ):
        pages = -(-len(mapped) // mmap.PAGESIZE)
        states = (ctypes.c_ubyte * pages)()
        start = ctypes.c_char.from_buffer(mapped)
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.mincore(
            ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(mapped)), states
        )
        del start
        assert not failed
        return sum(state & 1 for state in states)


@pytest.fixture
def uncached(tmp_path: Path) -> Path:
    """A file on the disk alone."""
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(os.urandom(SIZE))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached_pages(path):
        pytest.skip("this file system keeps its files in memory")
    return path


def test_files_are_read_into_the_page_cache(uncached: Path) -> None:
    read_ahead(lambda: [uncached]).join()
    assert cached_pages(uncached) == SIZE // mmap.PAGESIZE


def test_what_is_wrong_with_the_files_is_left_to_whoever_loads_them(tmp_path: Path) -> None:
    def broken() -> Iterable[Path]:
        raise ValueError("model_index.json is not JSON")

    # An exception that ends a thread would fail the test, as a warning.
    read_ahead(lambda: [tmp_path / "missing"]).join()
    read_ahead(broken).join()
