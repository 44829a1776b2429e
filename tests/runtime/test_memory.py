"""What a bounded mapping lets go of, and in which order."""

from __future__ import annotations

from connector_service.runtime.memory import Memory


def test_the_latest_used_stay() -> None:
    """Over its count the mapping forgets what was used longest ago; reading is use."""
    memory: Memory[str] = Memory(2, 1000)
    memory.put(b"a", "A", 1)
    memory.put(b"b", "B", 1)
    assert memory.get(b"a") == "A"
    memory.put(b"c", "C", 1)
    assert [memory.get(key) for key in (b"a", b"b", b"c")] == ["A", None, "C"]
    assert memory.oldest() == (b"a", "A")


def test_bytes_are_bounded_too() -> None:
    """The weights are summed exactly, through replacing, dropping and forgetting."""
    memory: Memory[str] = Memory(100, 10)
    memory.put(b"a", "A", 6)
    memory.put(b"a", "A", 4)
    memory.put(b"b", "B", 4)
    assert (len(memory), memory.weight) == (2, 8)
    memory.put(b"c", "C", 5)
    assert (memory.get(b"a"), memory.weight) == (None, 9)
    memory.drop(b"b")
    memory.drop(b"b")
    assert (len(memory), memory.weight) == (1, 5)


def test_what_does_not_fit_is_not_kept() -> None:
    """A value heavier than all leaves the mapping empty, not over its bound."""
    memory: Memory[str] = Memory(100, 10)
    memory.put(b"a", "A", 11)
    assert (len(memory), memory.weight, memory.oldest()) == (0, 0, None)
