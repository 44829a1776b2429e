"""Loading plugins: where each is imported, and what its import leaves there."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import threading

import pytest

from connector_service.hosts.child.connector_host.engine import Engine, Method, invoke
from connector_service.hosts.child.connector_host.loading import Source, load

STACK: contextvars.ContextVar[list[str]] = contextvars.ContextVar("stack")
PATIENCE = 30.0


class Importing:
    """A plugin whose import leaves things behind: in a thread-local, in a context, on a loop."""

    def __init__(self, fault: BaseException | None = None) -> None:
        self.engine = Engine(2)
        self.connector = object()
        self.local = threading.local()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread: threading.Thread | None = None
        self.fault = fault
        self._registry: dict[tuple[str, int], object] = {}

    def resolve(self) -> None:
        self.thread = threading.current_thread()
        self.local.left = "at import"
        self.loop = asyncio.get_event_loop()
        STACK.set(["import"])
        self._registry["odd", 0] = self.connector
        if self.fault is not None:
            raise self.fault

    def load(self) -> str:
        source = Source("odd", "odd", "", self.resolve)
        (plugin,) = load([source], self._registry.copy, self._registry.__delitem__, self.engine)
        return plugin.state


async def test_a_plugin_is_imported_where_its_connector_runs() -> None:
    """Thread-locals and the loop of the import are the connector's own; its context is ours."""
    plugin = Importing()
    token = STACK.set(["main"])
    try:
        assert await asyncio.to_thread(contextvars.copy_context().run, loaded_with_context, plugin)
    finally:
        STACK.reset(token)

    async def look() -> tuple[str, bool]:
        return plugin.local.left, asyncio.get_running_loop() is plugin.loop

    lane = plugin.engine.lane(plugin.connector, "Odd")
    seen = await asyncio.wait_for(lane.run(lambda: invoke(lane, Method(look), {})), PATIENCE)
    assert seen == ("at import", True)


def loaded_with_context(plugin: Importing) -> bool:
    return plugin.load() == "loaded" and STACK.get() == ["import"]


@pytest.mark.parametrize("fault", [RuntimeError("broken"), SystemExit(1)])
def test_an_import_that_fails_leaves_no_thread(fault: BaseException) -> None:
    """Its plugin alone is not loaded, and the thread that was begun for it ends."""
    plugin = Importing(fault)
    assert plugin.load() == "failed"
    assert plugin.thread is not None
    plugin.thread.join(PATIENCE)
    assert not plugin.thread.is_alive()


def test_an_import_may_handle_signals() -> None:
    """Python lets the main thread alone do so; such a plugin is imported there."""
    before = signal.getsignal(signal.SIGUSR2)
    source = Source("signals", "signals", "", lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN))
    try:
        (plugin,) = load([source], dict, lambda key: None, Engine(2))
        assert plugin.state == "loaded"
        assert signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR2, before)
