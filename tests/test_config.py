"""Settings: where they come from, which wins, and what a mistake is told."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from connector_service import Registry, SyncConnectorBase, config
from connector_service.errors import ConfigError
from connector_service.server.server import build

PREFIX = config.ENV_PREFIX


def load(
    tmp_path: Path, toml: str = "", environ: Mapping[str, str] | None = None, **flags: Any
) -> config.Config:
    file = tmp_path / "settings.toml"
    file.write_text(toml)
    variables = {PREFIX + name: text for name, text in (environ or {}).items()}
    return config.load(flags, environ=variables, file=file)


def refused(tmp_path: Path, *arguments: Any, **flags: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, *arguments, **flags)
    assert caught.value.exit_code == 2
    return str(caught.value).replace(str(tmp_path / "settings.toml"), "FILE")


@pytest.mark.parametrize(
    ("toml", "environ", "flags", "port"),
    [
        ("", {}, {}, 8000),
        ("port = 1", {}, {}, 1),
        ("port = 1", {"PORT": "2"}, {}, 2),
        ("port = 1", {"PORT": "2"}, {"port": 3}, 3),
        ("port = 1", {}, {"port": 3}, 3),
        ("", {"PORT": "2"}, {"port": 3}, 3),
        ("", {"PORT": " 2\n"}, {}, 2),
        ("", {"port": "2"}, {}, 2),
    ],
)
def test_flag_beats_environment_beats_file_beats_default(
    tmp_path: Path, toml: str, environ: dict[str, str], flags: dict[str, Any], port: int
) -> None:
    """The nearest of the four wins, whatever the others say."""
    assert load(tmp_path, toml, environ, **flags).listen.port == port


def test_settings_of_all_concerns_and_sources_come_together(tmp_path: Path) -> None:
    """One file, some variables and some flags give one whole configuration."""
    loaded = load(
        tmp_path,
        'host = "::"\nenable = ["spark*"]\ngrace = 3\n[connectors.spark.options]\nurl = "x"\n',
        {"STRICT": "true", "DISABLE": "a, b ,,c", "LOG_LEVEL": "debug"},
        module=("m",),
        prometheus_port=0,
    )
    assert loaded == config.Config(
        listen=config.Listen(host="::"),
        metrics=config.Metrics(prometheus_port=0),
        plugins=config.Plugins(
            module=("m",), enable=("spark*",), disable=("a", "b", "c"), strict=True
        ),
        drain=config.Drain(grace=3.0),
        log=config.Log(log_level="debug"),
        connectors={"spark": config.ConnectorSection(options={"url": "x"})},
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("1", True), ("True", True), ("false", False), ("0", False)],
)
def test_the_environment_spells_yes_and_no(tmp_path: Path, text: str, value: bool) -> None:
    """Variables hold text; the words that mean true and false are understood."""
    assert load(tmp_path, "", {"STRICT": text}).plugins.strict is value


def test_settings_never_change() -> None:
    """A configuration is a value: it is made once and read by all."""
    with pytest.raises(AttributeError):
        config.Config().listen.port = 1  # type: ignore[misc]


NAMES = ", ".join(sorted(field.name for field in config.fields()))


@pytest.mark.parametrize(
    ("toml", "sentence"),
    [
        ("prt = 1", "FILE: no setting is called prt; did you mean port?"),
        ("drain-delay = 1", "FILE: no setting is called drain-delay; did you mean drain_delay?"),
        ("xyzzy = 1", f"FILE: no setting is called xyzzy; known: {NAMES}."),
        ("config = 'x'", f"FILE: no setting is called config; known: {NAMES}."),
        (
            "[drain]\ngrace = 1",
            "FILE: [drain] is no table; settings stand at the top, without tables.",
        ),
        ("port = '8000'", "FILE: port is '8000': Expected int, got str."),
        ("port = true", "FILE: port is True: Expected int, got bool."),
        ("port = 65536", "FILE: port is 65536: Expected int <= 65535."),
        ("port = -1", "FILE: port is -1: Expected int >= 0."),
        ("grace = nan", "FILE: grace is nan: Expected float >= 0.0."),
        ("grace = inf", "FILE: grace is inf: Expected float <= 86400.0."),
        ("host = ''", "FILE: host is '': Expected str of length >= 1."),
        ("strict = 1", "FILE: strict is 1: Expected bool, got int. Choose from true, false."),
        ("module = 'a'", "FILE: module is 'a': Expected array, got str."),
        ("module = [1]", "FILE: module is [1]: Expected str, got int - at $[0]."),
        (
            "log_format = 'xml'",
            "FILE: log_format is 'xml': Invalid enum value 'xml'. Choose from text, json.",
        ),
        ("connectors = 3", "FILE: connectors is tables, one a task type."),
        ("[[connectors]]\nx = 1", "FILE: connectors is tables, one a task type."),
        ("connectors.x = 3", "FILE: [connectors.x]: Expected object, got int."),
        (
            "[connectors.x]\nurl = 'y'",
            "FILE: [connectors.x]: Object contains unknown field url.",
        ),
        (
            "connectors.x.options = 1",
            "FILE: [connectors.x]: Expected object, got int - at $.options.",
        ),
        ("port = ", "FILE is not valid TOML: Invalid value (at end of document)."),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence(tmp_path: Path, toml: str, sentence: str) -> None:
    """The operator reads which file, which key, what stood there and what was expected."""
    assert refused(tmp_path, toml) == sentence


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("GRASE", "1", "CONNECTOR_SERVICE_GRASE: no setting is called grase; did you mean grace?"),
        ("GRACE", "soon", "CONNECTOR_SERVICE_GRACE is 'soon': Expected float, got str."),
        ("GRACE", "nan", "CONNECTOR_SERVICE_GRACE is 'nan': Expected float >= 0.0."),
        ("PORT", "", "CONNECTOR_SERVICE_PORT is '': Expected int, got str."),
        (
            "STRICT",
            "yes",
            "CONNECTOR_SERVICE_STRICT is 'yes': Expected bool, got str. Choose from true, false.",
        ),
        (
            "LOG_LEVEL",
            "loud",
            "CONNECTOR_SERVICE_LOG_LEVEL is 'loud': Invalid enum value 'loud'."
            " Choose from debug, info, warning, error.",
        ),
        (
            "CONNECTORS",
            "x",
            f"CONNECTOR_SERVICE_CONNECTORS: no setting is called connectors; known: {NAMES}.",
        ),
    ],
)
def test_a_mistake_in_the_environment_is_one_sentence(
    tmp_path: Path, name: str, text: str, sentence: str
) -> None:
    """The operator reads the variable by the name that it has in the manifest."""
    assert refused(tmp_path, "", {name: text}) == sentence


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"port": 70000}, "--port is 70000: Expected int <= 65535."),
        ({"drain_delay": -1}, "--drain-delay is -1: Expected float >= 0.0."),
        ({"drian_delay": 1}, "--drian-delay: no setting is called drian_delay; did you mean drain"),
    ],
)
def test_a_mistake_in_a_flag_is_one_sentence(
    tmp_path: Path, flags: dict[str, Any], sentence: str
) -> None:
    """The flag is named as it was typed."""
    assert refused(tmp_path, **flags).startswith(sentence)


def test_variables_of_kubernetes_services_are_not_settings(tmp_path: Path) -> None:
    """Service links of `connector-service` and of its neighbours do not stop the start."""
    links = {
        f"{service}{name}": text
        for service in ("", "CANARY_", "METRICS_", "MY_HEADLESS_")
        for name, text in {
            "SERVICE_HOST": "10.0.0.1",
            "SERVICE_PORT": "8000",
            "SERVICE_PORT_GRPC": "8000",
            "PORT": "tcp://10.0.0.1:8000",
            "PORT_8000_TCP": "tcp://10.0.0.1:8000",
            "PORT_8000_TCP_PROTO": "tcp",
            "PORT_8000_TCP_PORT": "8000",
            "PORT_8000_TCP_ADDR": "10.0.0.1",
        }.items()
    }
    assert load(tmp_path, "", links) == config.Config()


def test_other_variables_are_not_ours(tmp_path: Path) -> None:
    """Only the prefix makes a variable a setting, and CONFIG says where the file is."""
    assert load(tmp_path, "", {"CONFIG": "elsewhere.toml"}) == config.Config()


def test_the_default_file_is_read_when_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`connector-service.toml` in the working directory counts, and may be absent."""
    monkeypatch.chdir(tmp_path)
    assert config.load() == config.Config()
    (tmp_path / "connector-service.toml").write_text("port = 5")
    assert config.load().listen.port == 5
    (tmp_path / "connector-service.toml").write_text("prt = 5")
    with pytest.raises(ConfigError, match=r"^connector-service\.toml: no setting is called prt"):
        config.load()


@pytest.mark.parametrize("reason", ["No such file or directory", "Is a directory"])
def test_a_named_file_must_be_readable(tmp_path: Path, reason: str) -> None:
    """A file that was asked for and cannot be read is an error, not a default."""
    path = tmp_path / "absent.toml" if "such" in reason else tmp_path
    with pytest.raises(ConfigError) as caught:
        config.load(file=path)
    assert str(caught.value) == f"Cannot read the settings file {path}: {reason}."


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 are told as such."""
    file = tmp_path / "settings.toml"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"settings\.toml is not valid TOML: 'utf-8' codec"):
        config.load(file=file)


class Configured(SyncConnectorBase):
    """A connector that takes options, refuses one, and breaks on another."""

    def __init__(self) -> None:
        super().__init__(task_type_name="x")
        self.received: list[Mapping[str, Any]] = []

    def configure(self, options: Mapping[str, Any]) -> None:
        self.received.append(options)
        if "bad" in options:
            raise ConfigError("[connectors.x.options]: bad is bad.")
        if "worse" in options:
            raise KeyError("worse")

    def do(self, **kwargs: Any) -> None: ...


def built(tmp_path: Path, toml: str) -> Configured:
    registry, connector = Registry(), Configured()
    registry.register(connector)
    build(load(tmp_path, toml), registry)
    return connector


@pytest.mark.parametrize(
    ("toml", "received"),
    [
        ("", {}),
        ("[connectors.x]", {}),
        (
            '[connectors.x.options]\nurl = "u"\nmany = [1, 2]\ndeep.key = true\n',
            {"url": "u", "many": [1, 2], "deep": {"key": True}},
        ),
    ],
)
def test_options_reach_their_connector_once(
    tmp_path: Path, toml: str, received: dict[str, Any]
) -> None:
    """`configure` is called exactly once, also when the operator set nothing."""
    assert built(tmp_path, toml).received == [received]


@pytest.mark.parametrize(
    ("toml", "sentence"),
    [
        ("connectors.x.options.bad = 1", "[connectors.x.options]: bad is bad."),
        (
            "connectors.x.options.worse = 1",
            "[connectors.x.options]: Configured refused them: KeyError: 'worse'.",
        ),
    ],
)
def test_options_that_a_connector_refuses_stop_the_start(
    tmp_path: Path, toml: str, sentence: str
) -> None:
    """Whatever `configure` raises, the operator reads which table is wrong."""
    with pytest.raises(ConfigError) as caught:
        built(tmp_path, toml)
    assert str(caught.value) == sentence


def test_a_section_that_nobody_owns_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A task type that is misspelt, or not installed here, is told and does not stop the start."""
    with caplog.at_level(logging.WARNING):
        built(tmp_path, "connectors.y.options.a = 1")
    assert [record.getMessage() for record in caplog.records] == [
        "[connectors.y] is for a task type that is not registered"
    ]
