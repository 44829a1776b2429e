"""Which host serves a task category, while hosts change what they offer."""

from __future__ import annotations

from typing import Any

import pytest
from flyteidl.admin.agent_pb2 import Agent
from flyteidl.admin.agent_pb2 import TaskCategory as Listed

from connector_service import TaskCategory
from connector_service.config import ConnectorSection
from connector_service.runtime.route import Conflict, Routes, Served

SPARK, RAY = TaskCategory("spark"), TaskCategory("ray", 1)


class Offering:
    """A host that offers what the test says, and whose calls nobody makes."""

    def __init__(self, name: str, *offered: TaskCategory, prefer: tuple[str, ...] = ()) -> None:
        self.name = name
        self.offered = list(offered)
        self.prefer = prefer

    def categories(self) -> dict[TaskCategory, Served]:
        return {category: Served(f"{self.name}'s", is_sync=False) for category in self.offered}

    def agents(self) -> list[Agent]:
        listed = [Listed(name=one.name, version=one.version) for one in self.offered]
        return [Agent(name=self.name, supported_task_categories=listed)]

    def prefers(self, category: TaskCategory) -> bool:
        return category.name in self.prefer

    async def run(self, call: Any) -> Any:
        raise NotImplementedError

    async def stream(self, call: Any, send: Any) -> None:
        raise NotImplementedError


def served(routes: Routes) -> dict[str, list[str]]:
    """Return what ListAgents would say: each host with its task types."""
    return {agent.name: list(agent.supported_task_types) for agent in routes.agents}


def test_the_first_host_keeps_what_two_offer_and_the_conflict_is_told() -> None:
    """Nothing is served by chance: the order of the settings decides, and it is an error."""
    first, second = Offering("first", SPARK), Offering("second", SPARK, RAY)
    routes = Routes([first, second], {})
    assert routes.refresh() == (Conflict(SPARK, "first", ("second",)),)
    assert routes[SPARK].host is first
    assert served(routes) == {"first": ["spark"], "second": ["ray"]}


def test_a_preference_settles_it() -> None:
    """The one host that prefers the type serves it, and it is listed there alone."""
    first, second = Offering("first", SPARK), Offering("second", SPARK, prefer=("spark",))
    routes = Routes([first, second], {})
    assert routes.refresh() == ()
    assert routes[SPARK].host is second
    assert served(routes) == {"second": ["spark"]}


def test_two_preferences_settle_nothing() -> None:
    """When two hosts want a type, that is as much an error as when none does."""
    hosts = [Offering(name, SPARK, prefer=("spark",)) for name in ("first", "second")]
    assert Routes(hosts, {}).refresh() == (Conflict(SPARK, "first", ("second",)),)


def test_a_route_lives_on_while_its_host_serves_it_alike() -> None:
    """A refresh forgets no call that a bulkhead counts, and follows what did change."""
    host = Offering("host", SPARK)
    routes = Routes([host], {"spark": ConnectorSection(concurrency=3)})
    before = routes[SPARK]
    assert before.bulkhead.concurrency == 3
    host.offered.append(RAY)
    routes.refresh()
    assert routes[SPARK] is before
    assert set(routes) == {SPARK, RAY}
    host.offered.remove(SPARK)
    routes.refresh()
    with pytest.raises(KeyError):
        routes[SPARK]


def test_a_type_that_the_service_does_not_offer_is_served_by_no_host() -> None:
    """--enable and --disable hold wherever a connector runs."""
    routes = Routes([Offering("host", SPARK, RAY)], {}, lambda task_type: task_type != "spark")
    assert set(routes) == {RAY}
    assert served(routes) == {"host": ["ray"]}
