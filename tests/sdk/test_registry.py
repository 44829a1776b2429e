"""Who serves which task category: the owned registry, and the class-level door to one."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from flyteidl.admin import agent_pb2

from connector_service import (
    AsyncConnectorBase,
    ConnectorBase,
    ConnectorRegistry,
    Registry,
    SyncConnectorBase,
    TaskCategory,
)
from connector_service.errors import (
    AuthorError,
    ConnectorNotFoundError,
    DuplicateConnectorError,
)
from connector_service.sdk.registry import registering_into


class Job(AsyncConnectorBase):
    def create(self, **kwargs: Any) -> None: ...

    def get(self, **kwargs: Any) -> None: ...

    def delete(self, **kwargs: Any) -> None: ...


class Ask(SyncConnectorBase):
    def do(self, **kwargs: Any) -> None: ...


def job(task_type: str, version: int = 0, name: str = "Job") -> Job:
    connector = Job(task_type_name=task_type, task_type_version=version)
    connector.name = name
    return connector


def ask(task_type: str, name: str = "Ask") -> Ask:
    connector = Ask(task_type_name=task_type)
    connector.name = name
    return connector


def registry_of(*connectors: ConnectorBase) -> Registry:
    registry = Registry()
    for connector in connectors:
        registry.register(connector)
    return registry


def listed(registry: Registry) -> dict[str, tuple[bool, list[tuple[str, int]]]]:
    return {
        agent.name: (
            agent.is_sync,
            [(category.name, category.version) for category in agent.supported_task_categories],
        )
        for agent in registry.list_connectors()
    }


def test_a_registered_connector_is_found_by_its_category() -> None:
    """A task type and version lead to the very object, and version 0 is the default."""
    first, second = job("t"), job("t", 1)
    registry = registry_of(first, second)
    assert registry.get_connector("t") is first
    assert registry.get_connector("t", 1) is second
    assert TaskCategory("t", 1) in registry
    assert len(registry) == 2


def test_the_metadata_is_the_whole_message() -> None:
    """A connector's message has both lists that the two generations of clients read."""
    registry = registry_of(job("b", 2), job("a"), ask("c"))
    expected = agent_pb2.Agent(
        name="Job",
        supported_task_types=["a", "b"],
        supported_task_categories=[
            agent_pb2.TaskCategory(name="a"),
            agent_pb2.TaskCategory(name="b", version=2),
        ],
    )
    assert registry.get_connector_metadata("Job") == expected
    assert registry.list_connectors() == [
        expected,
        agent_pb2.Agent(
            name="Ask",
            is_sync=True,
            supported_task_types=["c"],
            supported_task_categories=[agent_pb2.TaskCategory(name="c")],
        ),
    ]


def test_a_type_of_two_versions_is_named_once() -> None:
    """`supported_task_types` has no duplicates; the categories have both versions."""
    agent = registry_of(job("t"), job("t", 1)).get_connector_metadata("Job")
    assert list(agent.supported_task_types) == ["t"]
    assert [category.version for category in agent.supported_task_categories] == [0, 1]


def test_a_duplicate_is_refused_by_name() -> None:
    """The second connector of a category is refused, and the first goes on serving it."""
    first = job("t", name="First")
    registry = registry_of(first)
    with pytest.raises(DuplicateConnectorError) as caught:
        registry.register(job("t", name="Second"))
    assert str(caught.value) == (
        "Duplicate connector for task type 't' version 0: 'Second' was refused, 'First' has it;"
        " disable one, or register with override=True."
    )
    assert registry.get_connector("t") is first


def test_the_same_object_twice_is_no_duplicate() -> None:
    """A module imported under two names registers one connector."""
    connector = job("t")
    registry = registry_of(connector, connector)
    assert listed(registry) == {"Job": (False, [("t", 0)])}


def test_an_override_leaves_no_trace_of_what_it_replaced() -> None:
    """After `override=True` the category is listed once, under the new connector alone."""
    registry = registry_of(job("t", name="Old"), job("u", name="Old"))
    for _ in range(3):
        new = job("t", name="New")
        registry.register(new, override=True)
    assert registry.get_connector("t") is new
    assert listed(registry) == {"New": (False, [("t", 0)]), "Old": (False, [("u", 0)])}


def test_one_name_with_both_kinds_is_listed_as_two() -> None:
    """Sync and async connectors of one name never merge under the first one's `is_sync`."""
    for connectors in ((job("a", name="X"), ask("b", "X")), (ask("b", "X"), job("a", name="X"))):
        registry = registry_of(*connectors)
        assert listed(registry) == {"X": (False, [("a", 0)]), "X (sync)": (True, [("b", 0)])}
        assert registry.get_connector_metadata("X (sync)").is_sync


def test_the_list_does_not_depend_on_the_order_of_registration() -> None:
    """Replicas that load plugins in another order answer the same."""
    connectors = [job("b", name="B"), job("a", name="B"), ask("c"), job("a", 1, name="A")]
    lists = [registry_of(*order).list_connectors() for order in (connectors, reversed(connectors))]
    assert lists[0] == lists[1]


def test_a_batch_is_registered_whole_or_not_at_all() -> None:
    """When one of many is refused, none is added and what was there stays."""
    registry = registry_of(job("taken", name="Old"))
    batch = registry_of(job("new"), job("taken"))
    before = registry.list_connectors()
    with pytest.raises(DuplicateConnectorError):
        registry.update(list(batch))
    assert registry.list_connectors() == before
    assert TaskCategory("new") not in registry


class Counted(Job):
    asked = 0

    @property
    def name(self) -> str:
        Counted.asked += 1
        return "Counted"


def test_what_is_registered_is_not_described_anew_for_each_that_follows() -> None:
    """Ten times as many connectors cost ten times as much, not a hundred times."""

    def asked(number: int) -> int:
        Counted.asked = 0
        registry = registry_of(*(Counted(task_type_name=f"t{index}") for index in range(number)))
        assert len(registry.list_connectors()[0].supported_task_categories) == number
        return Counted.asked

    assert asked(200) <= 10 * asked(20)


def test_a_connector_that_cannot_be_described_is_refused_and_the_others_are_listed() -> None:
    """It is told at its registration, where the plugin alone is at fault, and not at a read."""
    registry = registry_of(job("one"))
    with pytest.raises(ValueError, match="out of range"):
        registry.register(job("two", version=2**40))
    assert listed(registry) == {"Job": (False, [("one", 0)])}
    assert TaskCategory("two", 2**40) not in registry


class NoInit(Job):
    def __init__(self) -> None:
        pass


class Unrelated:
    pass


@pytest.mark.parametrize(
    ("thing", "sentence"),
    [
        (Job, r"Job is a class; register an instance: Job\(\)\."),
        (Unrelated(), "Unrelated is no connector; subclass AsyncConnectorBase, SyncConnectorBase"),
        (None, "NoneType is no connector"),
        (
            type("Bare", (ConnectorBase,), {})(task_type_name="t"),
            "Bare is no connector; subclass AsyncConnectorBase, SyncConnectorBase or",
        ),
        (NoInit(), r"NoInit has no task type; call super\(\).__init__\(task_type_name=...\)"),
        (job(""), "Job has no task type"),
        (Job(task_type_name=5), r"Job serves \(5, 0\); a task type's name is a str"),  # type: ignore[arg-type]
        (Job(task_type_name="t", task_type_version="1"), "and its version an int"),  # type: ignore[arg-type]
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_connector_is_refused_with_what_to_do(thing: Any, sentence: str) -> None:
    """Each mistake an author makes at registration has its sentence; nothing is registered."""
    registry = Registry()
    with pytest.raises(AuthorError, match=sentence):
        registry.register(thing)
    assert len(registry) == 0


@pytest.mark.parametrize(
    ("known", "sentence"),
    [
        ([], "No connector for task type 'spark' version 1; registered: none."),
        (
            [("spark", 0), ("bigquery", 0)],
            "No connector for task type 'spark' version 1; registered: bigquery v0, spark v0.",
        ),
        (
            [(f"t{number:02}", 0) for number in range(25)],
            "No connector for task type 'spark' version 1; registered: "
            + ", ".join(f"t{number:02} v0" for number in range(20))
            + " and 5 more.",
        ),
    ],
)
def test_a_miss_lists_what_is_registered(known: list[tuple[str, int]], sentence: str) -> None:
    """Whoever asks for a type that nobody serves reads which ones there are."""
    registry = registry_of(*(job(*category) for category in known))
    with pytest.raises(ConnectorNotFoundError) as caught:
        registry.get_connector("spark", 1)
    assert str(caught.value) == sentence
    assert isinstance(caught.value, LookupError)


def test_a_missing_name_lists_the_names() -> None:
    """`get_connector_metadata` of an unknown name says which names there are."""
    with pytest.raises(ConnectorNotFoundError, match=r"^No connector for name 'X'; registered: Jo"):
        registry_of(job("t")).get_connector_metadata("X")


@pytest.mark.parametrize(
    ("enable", "disable", "kept", "idle"),
    [
        ((), (), "bigquery spark spark_connect", []),
        (("spark",), (), "spark", []),
        (("spark*",), (), "spark spark_connect", []),
        (("spark*",), ("spark",), "spark_connect", []),
        ((), ("spark?connect",), "bigquery spark", []),
        ((), ("*",), "", []),
        (("Spark",), (), "", ["Spark"]),
        (("spark", "sprk"), ("big",), "spark", ["sprk", "big"]),
    ],
)
def test_select_keeps_what_is_chosen(
    enable: tuple[str, ...], disable: tuple[str, ...], kept: str, idle: list[str]
) -> None:
    """`disable` wins over `enable`; patterns that matched nothing are handed back."""
    registry = registry_of(job("spark"), job("spark_connect"), job("bigquery", name="Big"))
    assert registry.select(enable=enable, disable=disable) == idle
    assert " ".join(registration.category.name for registration in registry) == kept
    assert {n for _, types in listed(registry).values() for n, _ in types} == set(kept.split())


def test_all_versions_of_a_type_are_selected_together() -> None:
    """`enable` speaks of task types, whatever their version."""
    registry = registry_of(job("t"), job("t", 1), job("u"))
    registry.select(enable=["t"])
    assert [registration.category for registration in registry] == [("t", 0), ("t", 1)]


def test_threads_register_and_read_at_once() -> None:
    """All registrations arrive, duplicates have one winner, and readers see whole states."""
    registry = Registry()
    workers, each = 6, 15
    barrier = threading.Barrier(workers + 1)
    refused: list[int] = []
    odd: list[object] = []
    done = threading.Event()

    def register(worker: int) -> None:
        barrier.wait()
        for number in range(each):
            registry.register(job(f"w{worker}-{number}"))
            try:
                registry.register(job(f"shared-{number}"))
            except DuplicateConnectorError:
                refused.append(number)

    def read() -> None:
        barrier.wait()
        while not done.is_set():
            odd.extend(r for r in registry if registry.resolve(r.category) is not r)

    threads = [threading.Thread(target=register, args=(worker,)) for worker in range(workers)]
    reader = threading.Thread(target=read)
    for thread in (*threads, reader):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    reader.join()
    assert odd == []
    assert len(registry) == workers * each + each
    assert len(refused) == (workers - 1) * each
    assert len(registry.get_connector_metadata("Job").supported_task_categories) == len(registry)


def test_the_class_level_door_leads_to_one_registry() -> None:
    """The calls that Flyte users know act on the registry that the code runs for."""
    registry, connector = Registry(), job("t")
    with registering_into(registry):
        ConnectorRegistry.register(connector)
        assert ConnectorRegistry.get_connector("t") is connector
        assert ConnectorRegistry.get_agent("t") is connector
        assert ConnectorRegistry.get_connector_metadata("Job").name == "Job"
        assert ConnectorRegistry.list_connectors() == registry.list_connectors()
        other = job("t", name="Other")
        ConnectorRegistry.register(other, override=True)
        assert ConnectorRegistry.get_connector("t") is other
    with pytest.raises(ConnectorNotFoundError):
        ConnectorRegistry.get_connector("t")


def test_doors_nest_and_close_when_the_code_raises() -> None:
    """An inner registry hides the outer one only while its code runs, however it ends."""
    outer, inner = Registry(), Registry()

    def fail() -> None:
        with registering_into(inner):
            ConnectorRegistry.register(job("inner"))
            raise RuntimeError

    with registering_into(outer):
        with pytest.raises(RuntimeError):
            fail()
        ConnectorRegistry.register(job("outer"))
    assert [len(outer), len(inner)] == [1, 1]
    assert outer.get_connector("outer")


async def test_tasks_of_one_loop_have_doors_of_their_own() -> None:
    """Two plugins that load at the same time never register into each other's registry."""
    registries = [Registry(), Registry()]
    both_open = asyncio.Barrier(2)

    async def load(registry: Registry, task_type: str) -> None:
        with registering_into(registry):
            await both_open.wait()
            ConnectorRegistry.register(job(task_type))
            await both_open.wait()

    await asyncio.gather(load(registries[0], "a"), load(registries[1], "b"))
    assert [[r.category.name for r in registry] for registry in registries] == [["a"], ["b"]]
