"""The wire as pinned in ``protos/`` against the wire of the installed Flyte packages."""

from __future__ import annotations

import copy
import importlib.util
import re
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

REPOSITORY = Path(__file__).parents[2]


def _load_pin() -> Any:
    spec = importlib.util.spec_from_file_location("pin", REPOSITORY / "protos" / "pin.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


pin = _load_pin()
PINNED = {name: pin.load(protocol) for name, protocol in pin.PROTOCOLS.items()}
V1, V2 = PINNED["flyteidl"], PINNED["flyteidl2"]

SUBJECTS = [
    pytest.param(package, section, name, id=name)
    for package, facts in PINNED.items()
    for section in pin.SECTIONS
    for name in facts[section]
]


@cache
def _dependencies() -> list[str]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [re.split(r"[^\w.-]", requirement)[0] for requirement in project["dependencies"]]


@cache
def _installed(package: str) -> dict[str, Any]:
    if package not in _dependencies():
        pytest.importorskip(
            package, reason=f"{package} is not a dependency yet and not installed: wire UNCHECKED"
        )
    return pin.describe(pin.PROTOCOLS[package], also=PINNED[package]["messages"])


@pytest.mark.parametrize(("package", "section", "name"), SUBJECTS)
def test_installed_package_still_has_what_is_pinned(package: str, section: str, name: str) -> None:
    """Nothing that we rely on moved on the wire; if it did, the message names what."""
    assert pin.moved(PINNED[package], _installed(package), section, name) == []


@pytest.mark.parametrize("package", PINNED)
def test_pins_are_as_their_writer_spells_them(package: str) -> None:
    """Nobody edited the pinned facts by hand, so pinning again shows only what Flyte changed."""
    assert pin.render(PINNED[package]) == pin.PROTOCOLS[package].file.read_text(encoding="utf-8")


@pytest.mark.parametrize("package", PINNED)
def test_pinning_again_changes_nothing(package: str) -> None:
    """The output depends on the package's release alone."""
    installed = _installed(package)
    if installed["version"] != PINNED[package]["version"]:
        pytest.skip(f"{package} {installed['version']} is installed, another release is pinned")
    assert pin.render(pin.describe(pin.PROTOCOLS[package])) == pin.render(PINNED[package])


def _edit(
    section: str, name: str, member: str, **change: object
) -> Callable[[dict[str, Any]], None]:
    def apply(facts: dict[str, Any]) -> None:
        facts[section][name][member].update(change)

    return apply


def _remove(section: str, name: str, *member: str) -> Callable[[dict[str, Any]], None]:
    def apply(facts: dict[str, Any]) -> None:
        place = facts[section]
        for key in (name, *member)[:-1]:
            place = place[key]
        del place[(name, *member)[-1]]

    return apply


def _renumber_value(facts: dict[str, Any]) -> None:
    facts["enums"]["flyteidl.core.TaskExecution.Phase"]["FAILED"] = 9


ASYNC = "flyteidl.service.AsyncAgentService"
SYNC = "flyteidl.service.SyncAgentService"
LITERAL = "flyteidl.core.Literal"
RESOURCE = "flyteidl.admin.Resource"


@pytest.mark.parametrize(
    ("doctor", "section", "name", "complaint"),
    [
        pytest.param(
            _edit("messages", RESOURCE, "phase", number=9),
            "messages",
            RESOURCE,
            "flyteidl.admin.Resource.phase: number is 9, pinned 5",
            id="field number",
        ),
        pytest.param(
            _edit("messages", RESOURCE, "message", type="bytes"),
            "messages",
            RESOURCE,
            "flyteidl.admin.Resource.message: type is bytes, pinned string",
            id="field type",
        ),
        pytest.param(
            _edit("messages", RESOURCE, "log_links", label="singular"),
            "messages",
            RESOURCE,
            "flyteidl.admin.Resource.log_links: label is singular, pinned repeated",
            id="repeated became singular",
        ),
        pytest.param(
            _edit("messages", RESOURCE, "message", label="repeated"),
            "messages",
            RESOURCE,
            "flyteidl.admin.Resource.message: label is repeated, pinned singular",
            id="singular became repeated",
        ),
        pytest.param(
            _edit("messages", LITERAL, "map", oneof="none"),
            "messages",
            LITERAL,
            "flyteidl.core.Literal.map: oneof is none, pinned value",
            id="left its oneof",
        ),
        pytest.param(
            _remove("messages", LITERAL, "scalar"),
            "messages",
            LITERAL,
            "flyteidl.core.Literal.scalar is gone",
            id="field removed",
        ),
        pytest.param(
            _remove("messages", LITERAL),
            "messages",
            LITERAL,
            "flyteidl.core.Literal is gone",
            id="message removed",
        ),
        pytest.param(
            _edit("services", SYNC, "ExecuteTaskSync", client_streaming=False),
            "services",
            SYNC,
            "flyteidl.service.SyncAgentService.ExecuteTaskSync:"
            " client_streaming is False, pinned True",
            id="client stopped streaming",
        ),
        pytest.param(
            _edit("services", ASYNC, "GetTaskLogs", server_streaming=False),
            "services",
            ASYNC,
            "flyteidl.service.AsyncAgentService.GetTaskLogs:"
            " server_streaming is False, pinned True",
            id="server stopped streaming",
        ),
        pytest.param(
            _edit("services", ASYNC, "GetTask", response="flyteidl.admin.Resource"),
            "services",
            ASYNC,
            "flyteidl.service.AsyncAgentService.GetTask:"
            " response is flyteidl.admin.Resource, pinned flyteidl.admin.GetTaskResponse",
            id="response type",
        ),
        pytest.param(
            _remove("services", ASYNC, "DeleteTask"),
            "services",
            ASYNC,
            "flyteidl.service.AsyncAgentService.DeleteTask is gone",
            id="RPC removed",
        ),
        pytest.param(
            _remove("services", ASYNC),
            "services",
            ASYNC,
            "flyteidl.service.AsyncAgentService is gone",
            id="service removed",
        ),
        pytest.param(
            _renumber_value,
            "enums",
            "flyteidl.core.TaskExecution.Phase",
            "flyteidl.core.TaskExecution.Phase.FAILED: number is 9, pinned 5",
            id="enum value",
        ),
        pytest.param(
            _remove("enums", "flyteidl.core.TaskExecution.Phase", "RETRYABLE_FAILED"),
            "enums",
            "flyteidl.core.TaskExecution.Phase",
            "flyteidl.core.TaskExecution.Phase.RETRYABLE_FAILED is gone",
            id="enum value removed",
        ),
    ],
)
def test_comparison_names_exactly_what_moved(
    doctor: Callable[[dict[str, Any]], None], section: str, name: str, complaint: str
) -> None:
    """A change to one fact yields one sentence that names it, and no other subject complains."""
    found = copy.deepcopy(V1)
    doctor(found)
    complaints = [
        sentence
        for part in pin.SECTIONS
        for subject in V1[part]
        for sentence in pin.moved(V1, found, part, subject)
    ]
    assert complaints == [complaint]
    assert pin.moved(V1, found, section, name) == [complaint]


def test_an_addition_is_no_complaint() -> None:
    """Flyte may add fields, values and RPCs without failing the build."""
    found = copy.deepcopy(V1)
    found["messages"][RESOURCE]["progress"] = {"number": 99, "type": "int32"}
    found["enums"]["flyteidl.core.TaskExecution.Phase"]["PAUSED"] = 99
    found["services"][ASYNC]["PauseTask"] = {"request": "a", "response": "b"}
    assert pin.moved(V1, found, "messages", RESOURCE) == []
    assert pin.moved(V1, found, "enums", "flyteidl.core.TaskExecution.Phase") == []
    assert pin.moved(V1, found, "services", ASYNC) == []


def test_a_doctored_pin_fails_against_the_installed_package() -> None:
    """The comparison reads the installed package, not the pins twice."""
    doctored = copy.deepcopy(V1)
    doctored["messages"][RESOURCE]["phase"]["number"] = 6
    assert pin.moved(doctored, _installed("flyteidl"), "messages", RESOURCE) == [
        "flyteidl.admin.Resource.phase: number is 5, pinned 6"
    ]


@pytest.mark.parametrize(
    ("package", "names"),
    [
        (
            "flyteidl",
            "admin.Resource admin.AgentError admin.TaskExecutionMetadata admin.LogLine"
            " core.TaskTemplate core.Sql core.Container core.KeyValuePair core.TypedInterface"
            " core.VariableMap core.Variable core.LiteralMap core.Literal core.Scalar"
            " core.Primitive core.Blob core.Binary core.Schema core.StructuredDataset core.Union"
            " core.LiteralOffloadedMetadata core.LiteralType core.TaskLog core.Identifier"
            " core.TaskExecutionIdentifier core.ExecutionError core.TaskExecution.Phase"
            " core.ExecutionError.ErrorKind admin.State",
        ),
        (
            "flyteidl2",
            "connector.Resource connector.TaskExecutionMetadata core.Connection task.Inputs"
            " task.Outputs task.NamedLiteral logs.dataplane.LogLine core.TaskTemplate core.Sql"
            " core.Container core.TypedInterface core.VariableMap core.VariableEntry"
            " core.LiteralMap core.Literal core.LiteralType core.TaskLog"
            " core.TaskExecutionIdentifier"
            " core.TaskExecution.Phase core.ExecutionError.ErrorKind",
        ),
    ],
)
def test_pins_cover_what_connectors_touch(package: str, names: str) -> None:
    """Pinning from fewer starting points than today would be noticed."""
    facts = PINNED[package]
    known = {*facts["messages"], *facts["enums"]}
    assert {f"{package}.{name}" for name in names.split()} - known == set()


def _as_v2(name: str) -> str:
    return name.replace("flyteidl.", "flyteidl2.", 1)


def _reached_in_v1(*starts: str) -> list[str]:
    reached: list[str] = []
    pending = list(starts)
    while pending:
        name = pending.pop()
        if name in reached or name not in V1["messages"]:
            continue
        reached.append(name)
        pending += [field["type"] for field in V1["messages"][name].values()]
    return sorted(reached)


# Flyte 2 spells this map as a repeated message with the map entry's two fields: the bytes are
# the same, and `test_v2_spells_three_maps_as_entries` proves it.
RESPELLED = ("flyteidl.core.VariableMap", "flyteidl.core.VariableMap.VariablesEntry")


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in _reached_in_v1("flyteidl.core.TaskTemplate", "flyteidl.core.LiteralMap")
        if name not in RESPELLED
    ],
)
def test_v2_has_every_field_of_v1_in_its_place(name: str) -> None:
    """A Flyte 1 TaskTemplate or Literal, all the way down, parses as Flyte 2 with nothing lost."""
    ours = {
        field: {**fact, "type": _as_v2(fact["type"])}
        for field, fact in V1["messages"][name].items()
    }
    theirs = V2["messages"][_as_v2(name)]
    assert {field: theirs.get(field) for field in ours} == ours


def test_v2_has_every_enum_value_of_v1() -> None:
    """Numbers mean the same phase, dialect, simple type and resource in both protocols."""
    used = {
        field["type"]
        for name in _reached_in_v1("flyteidl.core.TaskTemplate", "flyteidl.core.LiteralMap")
        for field in V1["messages"][name].values()
    } | {"flyteidl.core.TaskExecution.Phase", "flyteidl.core.ExecutionError.ErrorKind"}
    enums = {name: values for name, values in V1["enums"].items() if name in used}
    assert len(enums) > 10
    lost = [
        f"{name}.{value} = {number}"
        for name, values in enums.items()
        for value, number in values.items()
        if V2["enums"][_as_v2(name)].get(value) != number
    ]
    assert lost == []


@pytest.mark.parametrize(
    ("v1_entry", "v2_holder", "v2_field", "v2_entry"),
    [
        (
            "flyteidl.core.LiteralMap.LiteralsEntry",
            "flyteidl2.task.Inputs",
            "literals",
            "flyteidl2.task.NamedLiteral",
        ),
        (
            "flyteidl.core.LiteralMap.LiteralsEntry",
            "flyteidl2.task.Outputs",
            "literals",
            "flyteidl2.task.NamedLiteral",
        ),
        (
            "flyteidl.core.VariableMap.VariablesEntry",
            "flyteidl2.core.VariableMap",
            "variables",
            "flyteidl2.core.VariableEntry",
        ),
    ],
)
def test_v2_spells_three_maps_as_entries(
    v1_entry: str, v2_holder: str, v2_field: str, v2_entry: str
) -> None:
    """A map of Flyte 1 and the entries that replace it in Flyte 2 are the same bytes."""
    v1_map = v1_entry.rpartition(".")[0]
    (held,) = V1["messages"][v1_map].values()
    assert (held["number"], held["type"], held["label"]) == (1, v1_entry, "map")
    field = V2["messages"][v2_holder][v2_field]
    assert (field["number"], field["type"], field["label"]) == (1, v2_entry, "repeated")
    entry = [(fact["number"], _as_v2(fact["type"])) for fact in V1["messages"][v1_entry].values()]
    assert [(fact["number"], fact["type"]) for fact in V2["messages"][v2_entry].values()] == entry
