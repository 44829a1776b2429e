"""Keeps replies within what the clients can take, and warns of metas they should not keep.

The limits are the clients': Flyte 2 stores the message in a condition of at most 32 KiB and
repeats the whole round when it is longer; both drop a reply over gRPC's 4 MiB; the resource meta
is stored next to everything else etcd has for the workflow, and logged.
"""

from __future__ import annotations

import copy
import logging
import re
from typing import TYPE_CHECKING, Any

from connector_service.errors import AuthorError

if TYPE_CHECKING:
    from connector_service.sdk.resource import TaskCategory

__all__ = ["MAX_MESSAGE", "MAX_REPLY", "MetaWatch", "bound", "elide"]

_log = logging.getLogger(__name__)

MAX_MESSAGE = 4096  # bytes of UTF-8
# gRPC's default for what a client receives, less the response around the resource.
MAX_REPLY = 4 * 1024 * 1024 - 1024  # bytes
_MOST_LINKS = 64
_LONGEST_URI = 8192  # characters
_LONGEST_NAME = 1024  # bytes of a link's name
_MAX_CUSTOM_INFO = 64 * 1024  # bytes
_SMALL = 1024  # bytes of a whole resource, in which nothing but the links can be too much
_LARGE_META = 16 * 1024  # bytes
_MOST_WARNINGS = 1000

# A JSON key that is called like a secret and has a value. The patterns are words of a name
# (auth_token, clientSecret); `primary_key` and `idempotency_key` are keys of another kind.
_SECRET_FIELD = re.compile(
    rb'"([\w.-]{0,64}?(?:passw(?:or)?d|passphrase|token|secret|credential|private_?key|api_?key'
    rb'|access_?key|auth_?key)[\w.-]{0,64})"\s*:\s*+(?!null|""|\[\]|\{\}|true|false)',
    re.IGNORECASE,
)
# Without one of these there is no such key: most metas are spared the search.
_SECRET_WORDS = (b"pass", b"token", b"secret", b"credential", b"key")
# What is called a token and is none that opens a door: counts and page positions.
_INNOCENT = re.compile(
    rb"(?:^|_)(?:(?:max|num|total|input|output)_?tokens?|(?:page|next|continuation|client_request)"
    rb"_?token|tokens)$|_(?:name|key_id|id|ref|arn|path|count)$",
    re.IGNORECASE,
)


def elide(text: str, limit: int) -> str:
    """Cut ``text`` to ``limit`` bytes of UTF-8 by taking out its middle."""
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return data.decode("utf-8")
    mark = f" ... [{len(data) - limit} bytes cut] ... ".encode()
    head = (limit - len(mark)) * 2 // 3
    tail = limit - len(mark) - head
    parts = data[:head], mark, data[len(data) - tail :]
    return "".join(part.decode("utf-8", "ignore") for part in parts)


def bound(resource: Any) -> Any:
    """Return a ``Resource`` message of either protocol, cut to what the client can take.

    What has to be cut is cut in a copy: the message may be the connector's own.

    The message loses its middle; log links beyond the first 64 and those with an endless URI are
    dropped, since half a URI leads nowhere; custom info that is too large gives way to a note.

    Raises:
        AuthorError: The whole is still too large, and that is the outputs'.
    """
    if resource.ByteSize() <= _SMALL and len(resource.log_links) <= _MOST_LINKS:
        return resource
    if _exceeds(resource):
        resource = copy.deepcopy(resource)
    if _longer(resource.message, MAX_MESSAGE):
        resource.message = elide(resource.message, MAX_MESSAGE)
    if resource.log_links:
        _bound_links(resource.log_links)
    if resource.HasField("custom_info"):
        size = resource.custom_info.ByteSize()
        if size > _MAX_CUSTOM_INFO:
            resource.custom_info.Clear()
            resource.custom_info["note"] = (
                f"The connector's custom_info has {size} bytes; at most {_MAX_CUSTOM_INFO} are"
                f" passed on."
            )
    size = resource.ByteSize()
    if size > MAX_REPLY:
        raise AuthorError(
            f"The reply has {size} bytes and the client drops all over {MAX_REPLY}: write large"
            f" outputs to <output_prefix>/outputs.pb and leave the resource's outputs unset."
        )
    return resource


def _exceeds(resource: Any) -> bool:
    links = resource.log_links
    return (
        _longer(resource.message, MAX_MESSAGE)
        or len(links) > _MOST_LINKS
        or any(len(link.uri) > _LONGEST_URI or _longer(link.name, _LONGEST_NAME) for link in links)
        or resource.custom_info.ByteSize() > _MAX_CUSTOM_INFO
    )


def _longer(text: str, limit: int) -> bool:
    # Most texts are so short that nobody need count their bytes.
    return len(text) * 4 > limit and len(text.encode("utf-8")) > limit


def _bound_links(links: Any) -> None:
    kept = [link for link in links if len(link.uri) <= _LONGEST_URI][:_MOST_LINKS]
    for link in kept:
        if _longer(link.name, _LONGEST_NAME):
            link.name = elide(link.name, _LONGEST_NAME)
    if len(kept) < len(links):
        # Copies: emptying the list below would empty what it holds.
        copies = [type(link).FromString(link.SerializeToString()) for link in kept]
        del links[:]
        links.extend(copies)


class MetaWatch:
    """Warns, once for each connector, of a resource meta that is large or tells a secret."""

    def __init__(self) -> None:
        """Start with nothing said."""
        self._said: set[tuple[TaskCategory, str]] = set()

    def inspect(self, category: TaskCategory, resource_meta: bytes) -> None:
        """Look at the meta of a job just created; a field is named, its value never."""
        size = len(resource_meta)
        if size > _LARGE_META and self._first(category, ""):
            _log.warning(
                "resource meta is large",
                extra={
                    "task_type": category.name,
                    "bytes": size,
                    "hint": f"the client stores and logs it; aim at 1 KiB, at most {_LARGE_META}",
                },
            )
        text = resource_meta[: 4 * _LARGE_META]
        lowered = text.lower()
        for word in _SECRET_WORDS:
            if word in lowered:
                self._search(category, text)
                break

    def _search(self, category: TaskCategory, text: bytes) -> None:
        for found in _SECRET_FIELD.finditer(text):
            field = found[1].decode("ascii", "replace")
            if not _INNOCENT.search(found[1]) and self._first(category, field):
                _log.warning(
                    "resource meta seems to hold a secret",
                    extra={
                        "task_type": category.name,
                        "field": field,
                        "hint": "the client stores and logs the meta; keep secrets with the"
                        " service and read them in each operation",
                    },
                )

    def _first(self, category: TaskCategory, what: str) -> bool:
        # A meta's keys may be a user's own words: an endless set of them is no leak of ours.
        if (category, what) in self._said or len(self._said) >= _MOST_WARNINGS:
            return False
        self._said.add((category, what))
        return True
