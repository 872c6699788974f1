"""Weights into the page cache while the libraries are imported: the disk works when the CPU does.

Loading maps the files into memory, so what is there already is neither read nor copied again.
Several replicas on one machine share it.
"""

import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

logger = logging.getLogger("ray.serve")

BLOCK_BYTES = 16 * 1024**2


def read_ahead(find_files: Callable[[], Iterable[Path]]) -> threading.Thread:
    """Begins to read files and returns the thread that does.

    Args:
        find_files: which ones; called in that thread.
    """
    thread = threading.Thread(target=_read, args=(find_files,), name="read-ahead", daemon=True)
    thread.start()
    return thread


def _read(find_files: Callable[[], Iterable[Path]]) -> None:
    block = bytearray(BLOCK_BYTES)
    try:
        for path in find_files():
            with path.open("rb", buffering=0) as file:
                while file.readinto(block):
                    pass
    except Exception as error:  # noqa: BLE001 - what is wrong with the files, loading them says
        logger.debug("not read ahead: %s", error)
