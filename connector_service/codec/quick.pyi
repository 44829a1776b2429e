from collections.abc import Callable, Mapping
from typing import Any

OTHER: int
ANY: int
LIST: int
MAP: int

class UnusualError(ValueError): ...

class Kind:
    def __init__(
        self, number: int, read: Callable[[bytes], Any], inner: Kind | None = None
    ) -> None: ...

def values(
    data: bytes | memoryview, kinds: Mapping[str, Kind], other: Kind, most: int
) -> dict[str, Any]: ...
