"""Compares releases of grpcio: the floor again, with nothing else changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench import environments
from bench.peers import PEERS

if TYPE_CHECKING:
    from bench.peers import Peer

__all__ = ["floor_on"]


def floor_on(release: str) -> Peer:
    """Return the floor with a release of grpcio, in an environment that is made for it.

    The release comes from the package index without a lock; nothing of it stays in use.

    Raises:
        MissingToolError: uv is not installed.
    """
    python = environments.variant(
        "floor",
        f"grpcio-{release}",
        [
            # Its health service is generated for the release, and refuses an older one.
            f"grpcio=={release}",
            f"grpcio-health-checking=={release}",
        ],
    )
    return PEERS["floor"]._replace(name=f"grpcio {release}", python=str(python))
