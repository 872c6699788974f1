"""The last few results of an expensive step, bounded in number and in memory.

Of one thread: the model's.
"""

from collections import OrderedDict
from typing import Generic, TypeVar

ValueT = TypeVar("ValueT")


class EmbeddingCache(Generic[ValueT]):
    """Forgets what was not asked for the longest.

    Args:
        max_entries: how many are kept.
        max_bytes: how large they may be together; one that is larger alone is not kept.
    """

    def __init__(self, *, max_entries: int, max_bytes: int) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, tuple[ValueT, int]] = OrderedDict()

    def get(self, key: bytes) -> ValueT | None:
        """Returns what was put under this key, if it is still there."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, key: bytes, value: ValueT, *, size_bytes: int) -> None:
        """Keeps a value and forgets others to make room."""
        self._entries[key] = (value, size_bytes)
        while len(self._entries) > self._max_entries or self.size_bytes > self._max_bytes:
            self._entries.popitem(last=False)

    @property
    def size_bytes(self) -> int:
        """The sum of what is kept."""
        return sum(size for _, size in self._entries.values())
