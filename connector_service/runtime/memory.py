"""A mapping that forgets: what was used longest ago goes first, by count and by bytes.

cachetools has caches by count or by weight, not by both, and its sweep of expired entries runs
at every access; two bounds and one look at the oldest entry are all that is needed here.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

__all__ = ["Memory"]

V = TypeVar("V")


class Memory(Generic[V]):
    """At most ``entries`` values of at most ``weight`` bytes together, the latest used."""

    def __init__(self, entries: int, weight: int) -> None:
        """Take both bounds."""
        self._entries = entries
        self._most = weight
        self._weight = 0
        self._values: OrderedDict[bytes, tuple[V, int]] = OrderedDict()
        # Which keys there are, to be looked at without counting as used.
        self.keys = self._values.keys()

    def __len__(self) -> int:
        return len(self._values)

    @property
    def weight(self) -> int:
        """The bytes of all values together, as their owner counted them."""
        return self._weight

    def get(self, key: bytes) -> V | None:
        """Return a value and count it as used."""
        found = self._values.get(key)
        if found is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def put(self, key: bytes, value: V, weight: int) -> None:
        """Keep a value, and let go of the oldest until it fits."""
        known = self._values.get(key)
        self._values[key] = (value, weight)
        self._weight += weight
        if known is not None:
            self._values.move_to_end(key)
            self._weight -= known[1]
        while len(self._values) > self._entries or self._weight > self._most:
            _, (_, gone) = self._values.popitem(last=False)
            self._weight -= gone

    def drop(self, key: bytes) -> None:
        """Forget one value, if there is one."""
        _, weight = self._values.pop(key, (None, 0))
        self._weight -= weight

    def oldest(self) -> tuple[bytes, V] | None:
        """Return the value that was used longest ago, without counting it as used."""
        for key, (value, _) in self._values.items():
            return key, value
        return None
