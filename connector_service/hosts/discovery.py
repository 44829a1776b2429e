"""Asks another service what it serves, by the metadata services of both protocols."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import grpc.aio
from flyteidl.admin import agent_pb2
from flyteidl2.connector import connector_pb2
from google.protobuf.message import DecodeError
from grpc import StatusCode

from connector_service.codec.convert import FlyteProtocol
from connector_service.hosts.listing import offers_of
from connector_service.runtime.sizes import elide
from connector_service.sdk.secrets import redact

if TYPE_CHECKING:
    from collections.abc import Mapping

    from connector_service.hosts.listing import Offer
    from connector_service.sdk.resource import TaskCategory

__all__ = ["Discovery", "NoAnswerError"]

_MAX_DETAILS = 300  # bytes of a peer's words in a sentence of ours
_METHODS = {
    FlyteProtocol.FLYTE1: "/flyteidl.service.AgentMetadataService/ListAgents",
    FlyteProtocol.FLYTE2: "/flyteidl2.connector.ConnectorMetadataService/ListConnectors",
}
# The peer is out of reach, which says nothing of what it serves.
_OUT_OF_REACH = frozenset({StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED})


class NoAnswerError(Exception):
    """The peer does not tell what it serves; the text is one sentence for the operator."""


class _Answer(NamedTuple):
    """What one metadata service offers, or None, and why it told nothing, or None."""

    offers: dict[TaskCategory, Offer] | None
    problem: tuple[StatusCode, str] | None


class Discovery:
    """Asks the peer of one channel."""

    def __init__(self, channel: grpc.aio.Channel, endpoint: str) -> None:
        """Take the channel, and the endpoint as its sentences name it."""
        self._endpoint = endpoint
        self._lists: Mapping[FlyteProtocol, Any] = {
            protocol: channel.unary_unary(path) for protocol, path in _METHODS.items()
        }

    async def ask(self, patience: float) -> Mapping[FlyteProtocol, Mapping[TaskCategory, Offer]]:
        """Return what is offered in each protocol, within ``patience`` seconds.

        A protocol whose metadata service the peer does not have offers nothing. One whose service
        fails is left out: nothing is known of it.

        Raises:
            NoAnswerError: Neither service tells, or one was out of reach. Half an answer is none:
                without Flyte 1's a sync type would pass for an async one.
        """
        answers = dict(
            zip(
                _METHODS,
                await asyncio.gather(*(self._ask(each, patience) for each in _METHODS)),
                strict=True,
            )
        )
        problems = [answer.problem for answer in answers.values() if answer.problem is not None]
        for code, details in problems:
            if code in _OUT_OF_REACH or len(problems) == len(answers):
                raise NoAnswerError(self._silence(code, details))
        return {
            protocol: answer.offers
            for protocol, answer in answers.items()
            if answer.offers is not None
        }

    async def _ask(self, protocol: FlyteProtocol, patience: float) -> _Answer:
        try:
            data = await self._lists[protocol](b"", timeout=patience)
            return _Answer(offers_of(_agents(protocol, data)), None)
        except grpc.aio.AioRpcError as error:
            code = error.code()
            none: dict[TaskCategory, Offer] | None = (
                {} if code is StatusCode.UNIMPLEMENTED else None
            )
            return _Answer(none, (code, error.details() or "no details"))
        except DecodeError:
            return _Answer(None, (StatusCode.INTERNAL, "the answer is no message"))
        except grpc.aio.BaseError:
            return _Answer(None, (StatusCode.UNAVAILABLE, "the channel is closed"))

    def _silence(self, code: StatusCode, details: str) -> str:
        said = elide(redact(" ".join(details.split())), _MAX_DETAILS)
        return (
            f"{self._endpoint} does not tell what it serves ({code.name}: {said}); see whether a"
            f" connector service listens there."
        )


def _agents(protocol: FlyteProtocol, data: bytes) -> Any:
    if protocol is FlyteProtocol.FLYTE1:
        return agent_pb2.ListAgentsResponse.FromString(data).agents
    return connector_pb2.ListConnectorsResponse.FromString(data).connectors
