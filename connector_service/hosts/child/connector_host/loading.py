"""Loads plugins one by one, each in its own ``try``, and keeps a record of each."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import logging
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any

from .output import redact
from .table import Category, Plugin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .engine import Engine

__all__ = ["Source", "category_of", "entry_points", "load", "modules", "version"]

_log = logging.getLogger(__name__)

_LONGEST = 500  # characters of an error
_OURS = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - as tracebacks spell it


class Source:
    """A plugin that is to be loaded: its name, where it is, and how to get at it."""

    def __init__(
        self, name: str, target: str, distribution: str, resolve: Callable[[], Any]
    ) -> None:
        self.name = name
        self.target = target
        self.distribution = distribution
        self.resolve = resolve


def entry_points(group: str) -> list[Source]:
    """List the installed entry points of ``group``, by name."""
    found: dict[tuple[str, str], Any] = {}
    for entry in importlib.metadata.entry_points(group=group):
        found.setdefault((entry.name, entry.value), entry)  # a path may be searched twice
    return [
        Source(name, value, _distribution(entry), entry.load)
        for (name, value), entry in sorted(found.items())
    ]


def modules(names: Iterable[str]) -> list[Source]:
    """List modules by name; they are also looked for in the working directory, last."""
    here = os.getcwd()  # noqa: PTH109 - sys.path has text
    if names and here not in sys.path:
        sys.path.append(here)
    return [
        Source(name, name, "", functools.partial(importlib.import_module, name)) for name in names
    ]


def load(
    sources: Iterable[Source],
    registered: Callable[[], dict[Category, Any]],
    remove: Callable[[Category], None],
    engine: Engine,
) -> list[Plugin]:
    """Load every source, and find what each brought by what ``registered`` tells afterwards.

    Each is imported on the thread where its connector will run; of several, the first. Whatever
    one raises, ``SystemExit`` included, ends only itself, and ``remove`` then takes out what it
    had registered.
    """
    plugins = []
    for source in sources:
        before = registered()
        seat = engine.seat(source.name)
        error = _failure(functools.partial(seat.begin, source.resolve))
        if isinstance(error, ValueError) and "main thread" in str(error):
            # It handles a signal, which only the main thread may.
            error = _failure(source.resolve)
        brought = [
            category
            for category, connector in registered().items()
            if before.get(category) is not connector
        ]
        if error is None:
            if brought:
                engine.keep(registered()[brought[0]], seat)
            plugins.append(
                Plugin(source.name, source.target, "loaded", source.distribution, brought)
            )
        else:
            for category in brought:
                remove(category)
            plugins.append(_failed(source, error))
    return plugins


def _failure(resolve: Callable[[], Any]) -> BaseException | None:
    try:
        resolve()
    except BaseException as raised:  # noqa: BLE001 - sys.exit() at import ends it alone
        return raised
    return None


def version(distribution: str) -> str:
    """Return the installed version of ``distribution``, empty when there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def category_of(name: object, number: object) -> Category:
    """Return a task category as this program has it, whatever a connector put in its own."""
    return str(name), int(number or 0)  # type: ignore[call-overload]


def _failed(source: Source, error: BaseException) -> Plugin:
    missing = isinstance(error, ImportError) and not _is_own(error, source)
    state = "missing dependency" if missing else "failed"
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001 - a stranger's exception may fail at its own text
        text = ""
    sentence = redact(" ".join(f"{type(error).__name__}: {text}".split()))[:_LONGEST]
    plugin = Plugin(
        source.name,
        source.target,
        state,
        source.distribution,
        [],
        sentence,
        _where(error, source.target),
    )
    _log.error(
        "plugin %s is not loaded: %s",
        source.name,
        sentence,
        exc_info=None if missing else error,
    )
    return plugin


def _where(error: BaseException, target: str) -> str:
    """Return file and line of the plugin's last frame, where its author is to look."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    try:
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if "importlib" not in frame.filename and not frame.filename.startswith(_OURS)
        ]
    except BaseException:  # noqa: BLE001 - their source may be unreadable
        return ""
    path = os.sep + target.partition(":")[0].replace(".", os.sep)
    own = [frame for frame in frames if path in frame.filename] or frames
    return f"{own[-1].filename}:{own[-1].lineno}" if own else ""


def _is_own(error: BaseException, source: Source) -> bool:
    """Tell whether a module of the plugin's own package is what could not be imported."""
    missing: str = getattr(error, "name", None) or ""
    package = source.target.partition(":")[0]
    # Namespace packages (flytekitplugins) are shared by many distributions.
    return bool(missing) and (package == missing or package.startswith(f"{missing}."))


def _distribution(entry: Any) -> str:
    dist = getattr(entry, "dist", None)
    return f"{dist.name} {dist.version}" if dist is not None else ""
