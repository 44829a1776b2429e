"""Plugins break only themselves: real distributions, good and bad, in one real service."""

from __future__ import annotations

import json
import re
import subprocess
import types
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from daemon import COMMAND
from distributions import PATIENCE, Site
from flyteidl.admin import agent_pb2

from connector_service import ConnectorRegistry, Registry, SyncConnectorBase
from connector_service.errors import PluginError
from connector_service.plugins import loader
from connector_service.plugins.loader import PluginState, Source

FAKES = '''
from connector_service import Phase, Resource, SyncConnectorBase, ConnectorRegistry

class Answering(SyncConnectorBase):
    """Answers every call with its own task type."""

    task_type = "answering"

    def __init__(self, task_type=None):
        super().__init__(task_type_name=task_type or self.task_type)
        self.name = f"{self.task_category.name} connector"

    def do(self, **kwargs):
        return Resource(Phase.Value("SUCCEEDED"), outputs={"type": self.task_category.name})

def register(task_type):
    ConnectorRegistry.register(Answering(task_type))
'''
FROM_FAKES = "from fakes import Answering, register\n"

# Entry point -> its target, the source of its module, the state it ends in, what is said of it.
PLUGINS: dict[str, tuple[str, str, str, str]] = {
    "a_class": (
        "p_class:AClass",
        FROM_FAKES + "class AClass(Answering):\n    task_type = 'a_class'",
        "loaded",
        "",
    ),
    "a_module": ("p_module", FROM_FAKES + "register('one'); register('two')", "loaded", ""),
    "an_instance": (
        "p_instance:CONNECTOR",
        FROM_FAKES + "CONNECTOR = Answering('an_instance')",
        "loaded",
        "",
    ),
    "a_class_that_its_module_registered": (
        "p_both:Both",
        FROM_FAKES
        + "from connector_service import ConnectorRegistry\n"
        + "class Both(Answering): pass\nConnectorRegistry.register(Both('both'))",
        "loaded",
        "",
    ),
    "an_instance_beside_another": (
        "p_beside:SECOND",
        FROM_FAKES + "register('first')\nSECOND = Answering('second')",
        "loaded",
        "",
    ),
    "empty": ("p_empty", "", "loaded", ""),
    "prints": ("p_prints", FROM_FAKES + "print('a banner')\nregister('prints')", "loaded", ""),
    "raises": (
        "p_raises",
        "raise RuntimeError('no luck,\\n token=abcdefgh1234')",
        "failed",
        "RuntimeError: no luck, token=*** ({site}/p_raises.py:1)",
    ),
    "needs": (
        "p_needs",
        "import nothing_of_that_name",
        "missing dependency",
        "ModuleNotFoundError: No module named 'nothing_of_that_name' ({site}/p_needs.py:1)",
    ),
    "exits": (
        "p_exits",
        "import sys\nsys.exit(7)",
        "failed",
        "SystemExit: 7 ({site}/p_exits.py:2)",
    ),
    "takes_anothers": (
        "p_takes",
        FROM_FAKES + "register('its_own'); register('a_class')",
        "failed",
        "DuplicateConnectorError: Duplicate connector for task type 'a_class' version 0:"
        " 'a_class connector' was refused, 'a_class connector' has it; disable one, or register"
        " with override=True.",
    ),
    "takes_its_own": (
        "p_twice",
        FROM_FAKES + "register('twice'); register('twice')",
        "failed",
        "DuplicateConnectorError: Duplicate connector for task type 'twice' version 0: 'twice",
    ),
    "half": (
        "p_half",
        FROM_FAKES + "register('half')\nraise ValueError('the other half')",
        "failed",
        "ValueError: the other half ({site}/p_half.py:3)",
    ),
    "half_then_exits": (
        "p_half_exits",
        FROM_FAKES + "register('half_exits')\nraise SystemExit",
        "failed",
        "SystemExit: ",
    ),
    "abstract": (
        "p_abstract:Unfinished",
        "from connector_service import AsyncConnectorBase\n"
        "class Unfinished(AsyncConnectorBase):\n    def get(self, resource_meta): ...",
        "failed",
        "AuthorError: Unfinished lacks create, delete.",
    ),
    "function": (
        "p_function:make",
        "def make(): ...",
        "failed",
        "AuthorError: function is no connector; subclass ",
    ),
    "demands": (
        "p_demands:Demands",
        FROM_FAKES
        + "class Demands(Answering):\n    task_type = 'demands'\n    def do(self, cursor): ...",
        "failed",
        "AuthorError: Demands.do demands 'cursor', which the service never passes; it can take",
    ),
    "absent_module": (
        "p_nowhere:Connector",
        "",
        "failed",
        "ModuleNotFoundError: No module named 'p_nowhere'",
    ),
    "absent_name": (
        "p_class:Nobody",
        "",
        "failed",
        "AttributeError: module 'p_class' has no attribute 'Nobody'",
    ),
    "optional": (
        "p_optional:Optional [fast]",
        "import nothing_optional",
        "extra not installed",
        "install many-plugins[fast] to have it"
        " (ModuleNotFoundError: No module named 'nothing_optional')",
    ),
    "optional_but_broken": (
        "p_broken:Broken [fast]",
        "from json import nothing_in_there",
        "missing dependency",
        "ImportError: cannot import name 'nothing_in_there' from 'json'",
    ),
    "optional_but_absent": (
        "p_elsewhere:Optional [fast]",
        "",
        "failed",
        "ModuleNotFoundError: No module named 'p_elsewhere'",
    ),
}
OFFERED = {
    "a_class": ["a_class v0"],
    "a_module": ["one v0", "two v0"],
    "an_instance": ["an_instance v0"],
    "a_class_that_its_module_registered": ["both v0"],
    "an_instance_beside_another": ["first v0", "second v0"],
    "prints": ["prints v0"],
}
BUILT_IN = {"duckdb", "sleep"}


@pytest.fixture(scope="module")
def plugins(module_site: Site) -> Site:
    """One distribution with every kind of plugin that there is."""
    sources = {target.partition(":")[0]: text for target, text, _, _ in PLUGINS.values() if text}
    module_site.install(
        "many-plugins",
        {"fakes": FAKES, "p_empty": "", **sources},
        {name: target for name, (target, _, _, _) in PLUGINS.items()},
        "Provides-Extra: fast\nRequires-Dist: nothing-optional; extra == 'fast'\n",
    )
    return module_site


@pytest.fixture(scope="module")
def listed(plugins: Site) -> dict[str, Any]:
    """What ``list --json`` says of them."""
    run = plugins.run("list", "--json")
    assert run.returncode == 0, run.stderr
    shown: dict[str, Any] = json.loads(run.stdout)  # nothing that a plugin printed is in it
    assert run.stderr == "a banner\n"
    return shown


@pytest.mark.parametrize("name", PLUGINS)
def test_every_plugin_leaves_its_record(name: str, listed: dict[str, Any], plugins: Site) -> None:
    """State, origin, categories and the reason in one line: for the good and for each bad one."""
    target, _, state, error = PLUGINS[name]
    record = next(plugin for plugin in listed["plugins"] if plugin["name"] == name)
    said = record["error"]
    assert record == {
        "error": said,
        "name": name,
        "target": target,
        "distribution": "many-plugins 1.0",
        "state": state,
        "task_categories": OFFERED.get(name, []),
        "host": "",
    }
    assert said.startswith(error.format(site=plugins.folder))
    assert bool(said) == bool(error)
    assert "\n" not in said


def test_a_plugin_that_failed_registers_nothing(listed: dict[str, Any]) -> None:
    """What a plugin registered before it failed is not offered: all of it or none."""
    types = {name for connector in listed["connectors"] for name in connector["task_types"]}
    good = {category for categories in OFFERED.values() for category in categories}
    assert types - {f"{name} v0" for name in BUILT_IN} == good


def test_the_table_says_what_failed_and_why(plugins: Site) -> None:
    """People read one line for each failure, no traceback and no secret."""
    run = plugins.run("list")
    assert run.returncode == 0
    assert re.search(r"^ ?a_module +many-plugins 1\.0 +loaded +one v0, two v0 *$", run.stdout, re.M)
    assert re.search(r"^ ?exits +many-plugins 1\.0 +failed *$", run.stdout, re.M)
    said = [line for line in run.stderr.splitlines() if line != "a banner"]
    assert len(said) == sum(1 for *_, error in PLUGINS.values() if error)
    assert "exits (failed): SystemExit: 7" in run.stderr
    assert "Traceback" not in run.stderr
    assert "abcdefgh1234" not in run.stdout + run.stderr


def test_describe_knows_a_plugin_that_failed(plugins: Site) -> None:
    """Its record can be read by its name, though it registered no connector."""
    run = plugins.run("describe", "exits")
    assert run.returncode == 0
    assert run.stdout.splitlines()[:3] == [
        "plugin exits: failed",
        "  target: p_exits",
        "  distribution: many-plugins 1.0",
    ]
    assert run.stdout.splitlines()[3].startswith("  error: SystemExit: 7")


class Serving:
    def __init__(self, process: subprocess.Popen[str], announced: str) -> None:
        self.process = process
        found = re.fullmatch(
            r"connector-service \S+ serving on (\S+), metrics on (\S+)"
            r" \(plugins: (\d+) loaded, (\d+) failed\)\n",
            announced,
        )
        assert found is not None, announced
        self.endpoint, self.metrics, self.loaded, self.failed = found.groups()


@pytest.fixture(scope="module")
def serving(plugins: Site) -> Iterator[Serving]:
    """The daemon that has loaded all of them."""
    process = subprocess.Popen(
        [str(COMMAND), "serve", "--port=0", "--prometheus-port=0", "--drain-delay=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=plugins.environ(),
        cwd=plugins.folder.parent,
    )
    with process:
        assert process.stdout is not None
        yield Serving(process, process.stdout.readline())
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_the_service_is_up_and_serves_the_rest(serving: Serving, plugins: Site) -> None:
    """With two dozen plugins of which most are broken, the good ones answer real calls."""
    for task_type in ("a_class", "one", "second"):
        run = plugins.run("run", "--endpoint", serving.endpoint, "--task-type", task_type)
        assert (run.returncode, json.loads(run.stdout)) == (0, {"type": task_type})
    run = plugins.run("run", "--endpoint", serving.endpoint, "--task-type", "half")
    assert run.returncode == 1
    assert "No connector for task type 'half' version 0; registered: " in run.stderr


def test_a_running_service_tells_of_its_plugins(
    serving: Serving, plugins: Site, listed: dict[str, Any]
) -> None:
    """From afar the list is the same as here, but for the paths of the machine it runs on."""
    run = plugins.run("list", "--json", "--endpoint", serving.endpoint)
    there = json.loads(run.stdout)
    for record in listed["plugins"]:
        error = re.sub(r" \(/\S+:\d+\)$", "", record["error"])
        assert {**record, "error": error} in there["plugins"]
    assert str(plugins.folder) not in run.stdout


def test_metrics_count_the_plugins(serving: Serving) -> None:
    """An alert can stand on the gauges; an extra that is not installed is no failure."""
    with urllib.request.urlopen(serving.metrics, timeout=10) as response:
        text = response.read().decode()
    failed = sum(state in ("failed", "missing dependency") for _, _, state, _ in PLUGINS.values())
    assert int(serving.failed) >= failed
    assert f"connector_service_plugins_failed {serving.failed}.0\n" in text
    assert f"connector_service_plugins_loaded {serving.loaded}.0\n" in text
    assert 'connector_service_plugin_up{plugin="a_class"} 1.0\n' in text
    assert 'connector_service_plugin_up{plugin="exits"} 0.0\n' in text
    assert 'plugin="optional"' not in text


def test_strict_refuses_to_start(plugins: Site) -> None:
    """Under --strict any failure is one last sentence, naming each plugin, and exit code 3."""
    run = plugins.run("serve", "--strict", "--port=0", "--prometheus-port=0")
    assert run.returncode == 3
    last = run.stderr.splitlines()[-1]
    assert re.match(r"Error: \d+ of \d+ plugins failed and --strict is on: ", last)
    for name, (_, _, state, _) in PLUGINS.items():
        failed = state in ("failed", "missing dependency")
        assert (f" {name}: " in last) == failed, name
    assert "token=***" in last


def test_an_extra_that_is_not_installed_is_no_failure(site: Site) -> None:
    """--strict starts with it: nobody asked for that plugin."""
    site.install(
        "lazy",
        {"fakes": FAKES, "lazy": "import nothing_optional"},
        {"lazy": "lazy:Lazy [more]"},
        "Provides-Extra: more\n",
    )
    run = site.run("list", "--strict", "--json", "--disable=duckdb", "--disable=sleep")
    records = {plugin["name"]: plugin for plugin in json.loads(run.stdout)["plugins"]}
    assert records["lazy"]["state"] == "extra not installed"


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Three good task types in one module, which is not announced anywhere."""
    site = Site(tmp_path_factory.mktemp("three") / "site")
    register = "register('spark'); register('spark_connect'); register('bigquery')"
    site.install("three", {"fakes": FAKES, "three": FROM_FAKES + register})
    return site


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        (["--enable=spark*"], ["spark", "spark_connect"]),
        (["--enable=spark"], ["spark"]),
        (["--enable=spark*", "--disable=*_connect"], ["spark"]),
        (["--enable=spark", "--enable=big*"], ["bigquery", "spark"]),
        (["--enable=*", "--disable=duckdb", "--disable=sleep", "--disable=s?ark"], None),
    ],
)
def test_patterns_choose_what_is_offered(
    three: Site, flags: list[str], kept: list[str] | None
) -> None:
    """--enable and --disable choose task types; the plugins stay on record."""
    run = three.run("list", "--module=three", "--json", *flags)
    shown = json.loads(run.stdout)
    types = sorted(
        name.removesuffix(" v0")
        for connector in shown["connectors"]
        for name in connector["task_types"]
    )
    assert types == (kept or ["bigquery", "spark_connect"])
    record = shown["plugins"][-1]
    assert (record["name"], record["state"]) == ("three", "loaded")


def test_a_pattern_that_matches_nothing_is_told(three: Site) -> None:
    """A misspelt pattern warns, and under --strict it is exit code 3."""
    run = three.run("list", "--module=three", "--enable=sprk", "--enable=spark")
    assert run.returncode == 0
    assert "--enable/--disable sprk matches no registered task type" in run.stderr
    run = three.run("list", "--module=three", "--disable=sprk", "--strict")
    assert run.returncode == 3
    assert run.stderr.splitlines()[-1].startswith("Error: --enable/--disable sprk matches no")


def test_a_module_of_the_working_folder_is_found(site: Site) -> None:
    """--module sees a file next to the caller, but no such file hides an installed package."""
    site.install("fakes", {"fakes": FAKES})
    work = site.folder.parent / "work"
    work.mkdir()
    (work / "mine.py").write_text(FROM_FAKES + "register('mine')")
    (work / "json.py").write_text("raise RuntimeError('a file of the folder, not the library')")
    run = site.run("run", "--module=mine", "--task-type=mine", cwd=work)
    assert (run.returncode, run.stdout) == (0, '{\n  "type": "mine"\n}\n'), run.stderr


def test_a_module_that_fails_is_told_before_the_miss(site: Site) -> None:
    """`run --module` of a broken module says why its task type is not there."""
    site.install("broken", {"broken": "import nothing_of_that_name"})
    run = site.run("run", "--module=broken", "--task-type=t")
    assert run.returncode == 1
    said = run.stderr.splitlines()
    assert said[0] == (
        "plugin broken (missing dependency):"
        " ModuleNotFoundError: No module named 'nothing_of_that_name'"
    )
    assert said[-1].startswith("Error: No connector for task type 't' version 0; registered: ")


def test_a_plugin_that_fails_takes_no_other_with_it(site: Site) -> None:
    """A module that a broken plugin imported first is still served for its own plugin."""
    site.install(
        "pair",
        {
            "fakes": FAKES,
            "a_broken": FROM_FAKES + "import b_good\nregister('a')\nraise RuntimeError('a')",
            "b_good": "from fakes import Answering\n"
            "from connector_service import ConnectorRegistry\n"
            "class Good(Answering): pass\nConnectorRegistry.register(Good('b'))",
        },
        {"a": "a_broken", "b": "b_good"},
    )
    run = site.run("list", "--json")
    shown = json.loads(run.stdout)
    records = {plugin["name"]: plugin for plugin in shown["plugins"]}
    assert records["a"]["state"] == "failed"
    assert (records["b"]["state"], records["b"]["task_categories"]) == ("loaded", ["b v0"])
    types = {name for connector in shown["connectors"] for name in connector["task_types"]}
    assert "b v0" in types
    assert "a v0" not in types


class Fake(SyncConnectorBase):
    """A connector of the test's own process."""

    def __init__(self, task_type: str = "fake") -> None:
        super().__init__(task_type_name=task_type)

    def do(self, **kwargs: Any) -> None: ...


def source(name: str, resolve: Any, **more: Any) -> Source:
    return Source(name, f"{name}_module", "", resolve, **more)


def test_ctrl_c_while_plugins_load_is_the_operators() -> None:
    """KeyboardInterrupt is no failure of the plugin that happened to load; it ends the start."""

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loader.load([source("slow", interrupted)], Registry())


def test_what_a_plugin_registers_goes_to_the_registry_that_is_loaded() -> None:
    """The class-level door leads to the service's registry while a plugin loads, not before."""
    registry = Registry()

    def registers() -> types.ModuleType:
        ConnectorRegistry.register(Fake("through_the_door"))
        assert len(registry) == 0  # staged: nothing is offered before the plugin has loaded
        return types.ModuleType("some_module")

    [record] = loader.load([source("door", registers)], registry)
    assert record.categories == (("through_the_door", 0),)
    assert registry.list_connectors() == [
        agent_pb2.Agent(
            name="Fake",
            is_sync=True,
            supported_task_types=["through_the_door"],
            supported_task_categories=[agent_pb2.TaskCategory(name="through_the_door")],
        )
    ]


def test_an_override_of_a_plugin_replaces_another_plugins() -> None:
    """`override=True` works across plugins, and leaves one connector for the category."""
    registry = Registry()
    second = Fake("t")
    second.name = "Second"

    def overrides() -> types.ModuleType:
        ConnectorRegistry.register(second, override=True)
        return types.ModuleType("some_module")

    records = loader.load([source("a", lambda: Fake("t")), source("b", overrides)], registry)
    assert [record.state for record in records] == [PluginState.LOADED, PluginState.LOADED]
    assert registry.get_connector("t") is second
    assert [agent.name for agent in registry.list_connectors()] == ["Second"]


def test_strict_raises_only_when_something_failed() -> None:
    """All failures are named in one error; none at all raises nothing."""
    registry = Registry()

    def fails() -> None:
        raise ValueError("not today")

    records = loader.load([source("a", lambda: Fake("a")), source("b", fails)], registry)
    loader.refuse_failures(records[:1])
    with pytest.raises(PluginError) as caught:
        loader.refuse_failures(records)
    assert str(caught.value) == (
        "1 of 2 plugins failed and --strict is on: b: ValueError: not today"
    )
    assert caught.value.exit_code == 3


def test_entry_points_are_loaded_by_name_and_modules_in_their_order() -> None:
    """Every replica loads in one order, so the same plugin wins everywhere."""
    found = loader.sources(["z_module", "a_module"])
    names = [one.name for one in found[:-2]]
    assert names == sorted(names)
    assert [one.name for one in found[-2:]] == ["z_module", "a_module"]
