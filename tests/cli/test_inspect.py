"""``connector-service list`` and ``describe``: here and at a running service."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

Service = Any
Cli = Any

MODULE = """
from connector_service import AsyncConnectorBase, ConnectorRegistry

class Mine(AsyncConnectorBase):
    name = "My Connector"
    def __init__(self, version):
        super().__init__(task_type_name="mine", task_type_version=version)
    async def create(self, task_template, **kwargs): ...
    def get(self, resource_meta): ...
    def delete(self, resource_meta): ...
    async def get_logs(self, resource_meta, token):
        yield

ConnectorRegistry.register(Mine(0))
ConnectorRegistry.register(Mine(1))
"""
ONLY = ("--module", "mine", "--enable", "mine")


@pytest.fixture(autouse=True)
def module(tmp_path: Path) -> None:
    """A module of connectors in the folder that the command runs in."""
    (tmp_path / "mine.py").write_text(MODULE)


def test_list_shows_what_is_registered_here(cli: Cli) -> None:
    """One row a connector and one a plugin; in a pipe no row is cut."""
    run = cli("list", *ONLY)
    assert (run.code, run.err) == (0, "")
    rows = [" ".join(line.split()) for line in run.out.splitlines()]
    assert "connector task types kind" in rows
    assert "My Connector mine v0, mine v1 async" in rows
    assert "mine mine loaded mine v0, mine v1" in rows


def test_brackets_are_no_markup(cli: Cli, tmp_path: Path) -> None:
    """Names that others chose are printed as they are, whatever is in them."""
    (tmp_path / "odd.py").write_text(
        MODULE.replace("My Connector", "[/b] [red]x").replace(
            'task_type_name="mine"', 'task_type_name="[bold]"'
        )
    )
    run = cli("list", "--module", "odd", "--enable", "[[]bold]")
    assert run.code == 0, run.err
    assert "[/b] [red]x" in run.out
    assert "[bold] v0, [bold] v1" in run.out


@pytest.mark.parametrize("columns", [48, 1])
def test_a_table_fits_the_terminal(
    columns: int, terminal: Any, tmp_path: Path, environ: dict[str, str]
) -> None:
    """Cells that are too wide go on below, and a terminal too narrow for any table gets one."""
    name = "A connector of many words with a long name"
    (tmp_path / "wide.py").write_text(MODULE.replace("My Connector", name))
    environ["COLUMNS"] = str(columns)
    screen = terminal("list", "--module", "wide", "--enable", "mine")
    assert screen.end() == 0
    assert max(len(line) for line in screen.screen.splitlines()) <= max(columns, 16)
    if columns > 1:
        assert all(word in screen.screen for word in name.split())


@pytest.mark.parametrize(("name", "shown"), [(r"a\x1b[2J\rx\ny", "a [2J x y"), ("1e3", "1e3")])
def test_a_name_is_shown_and_no_more(name: str, shown: str, cli: Cli, tmp_path: Path) -> None:
    """What another chose as a name stays on its line, steers no terminal and is no number."""
    (tmp_path / "odd.py").write_text(MODULE.replace("My Connector", name))
    run = cli("list", "--module", "odd", "--enable", "mine")
    assert run.code == 0, run.err
    assert [shown, "mine v0, mine v1", "async"] in [
        re.split("   +", line) for line in run.out.splitlines()
    ]
    assert "\x1b" not in run.out


def test_describe_shows_operations_and_their_arguments(cli: Cli) -> None:
    """An author sees how each method is run and what it will be given."""
    run = cli("describe", *ONLY, "mine")
    assert run.code == 0
    assert run.out == (
        "My Connector: async connector\n"
        "  task types: mine v0, mine v1\n"
        "  create [coroutine](task_template, output_prefix, inputs, task_execution_metadata,"
        " idempotency_key)\n"
        "  get [plain](resource_meta)\n"
        "  delete [plain](resource_meta)\n"
        "  get_logs [async generator](resource_meta, token)\n"
        "plugin mine: loaded\n"
        "  target: mine\n"
    )


def test_describe_finds_by_name_and_has_json(cli: Cli) -> None:
    """Whatever people call it, the connector is found, and JSON has it whole."""
    run = cli("describe", *ONLY, "--json", "My Connector")
    assert run.code == 0
    [connector] = run.json["connectors"]
    assert connector["task_types"] == ["mine v0", "mine v1"]
    assert connector["operations"]["get [plain]"] == ["resource_meta"]


def test_a_running_service_is_listed_from_afar(service: Service, here: Cli) -> None:
    """--endpoint shows the connectors of the service, not those installed here."""
    run = here("list", "--endpoint", service.endpoint, "--json")
    job = {"name": "Job Connector", "is_sync": False, "task_types": ["job v0"], "operations": {}}
    ask = {"name": "Ask", "is_sync": True, "task_types": ["ask v0"], "operations": {}}
    assert run.json == {"connectors": [ask, job], "plugins": [], "hosts": []}


@pytest.mark.parametrize("name", ["Ask", "ask"])
def test_a_running_services_connector_is_described(service: Service, here: Cli, name: str) -> None:
    """--endpoint and a name print what the service tells of one connector."""
    run = here("describe", "--endpoint", service.endpoint, name)
    assert (run.code, run.out) == (0, "Ask: sync connector\n  task types: ask v0\n")
    run = here("describe", "--endpoint", service.endpoint, "--json", name)
    assert [connector["name"] for connector in run.json["connectors"]] == ["Ask"]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (
            ("describe", "--endpoint", "{endpoint}", "nope"),
            1,
            "Error: No connector for 'nope'; registered: Ask, Job Connector, ask, job.",
        ),
        (("describe",), 2, "Error: Missing argument 'NAME'."),
        (
            ("list", "--endpoint", "{endpoint}", "--module", "m", "--strict"),
            2,
            "Error: --module, --strict cannot change the service at --endpoint; leave one of them",
        ),
        (
            ("list", "--endpoint", "{endpoint}", "--config", "x.toml"),
            2,
            "Error: --config cannot change the service at --endpoint",
        ),
        (("list", "--endpoint", " "), 2, "Error: Invalid value for '--endpoint': it is empty;"),
        (("list", "--endpoint", "127.0.0.1:1"), 1, "Error: UNAVAILABLE: failed to connect to all"),
        (("list", "--config", "absent.toml"), 2, "Error: Cannot read the settings file absent"),
        (("lst",), 2, "Error: No such command 'lst'."),
        (("list", "--jsn"), 2, "Error: No such option '--jsn'"),
        (("list", "more"), 2, "Error: Got unexpected extra argument (more)"),
    ],
)
def test_a_mistake_is_one_sentence_and_the_right_code(
    arguments: tuple[str, ...], code: int, sentence: str, service: Service, here: Cli
) -> None:
    """Wrong usage or settings are 2, a service that cannot be asked is 1."""
    run = here(*(argument.replace("{endpoint}", service.endpoint) for argument in arguments))
    assert run.sentence.startswith(sentence)
    assert (run.code, run.out) == (code, "")


@pytest.mark.parametrize("command", ["", "call", "list", "describe", "reload", "run", "serve"])
def test_help_is_whole_sentences(command: str, here: Cli) -> None:
    """Each command's help says what it does, and the list of commands cuts none of them short."""
    run = here(*command.split(), "--help")
    assert (run.code, run.err) == (0, "")
    assert run.out.startswith("Usage: ")
    assert "..." not in run.out.replace("[ARGS]...", "")


def test_the_version_is_printed(here: Cli) -> None:
    """--version names the program and its version, for bug reports."""
    run = here("--version")
    assert (run.code, run.out.split()[0]) == (0, "connector-service,")


def test_settings_of_the_environment_count_here_too(cli: Cli) -> None:
    """The commands read the same settings as `serve`, and refuse the same mistakes."""
    run = cli("list", "--json", module="mine", enable="mine")
    assert [connector["name"] for connector in run.json["connectors"]] == ["My Connector"]
    run = cli("list", modul="mine")
    assert (run.code, run.sentence) == (
        2,
        "Error: CONNECTOR_SERVICE_MODUL: no setting is called modul; did you mean module?",
    )
