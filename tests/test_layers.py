"""The architecture as a test: layers, exports, the tree of errors, the settings."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import connector_service
from connector_service import config, errors

ROOT = Path(connector_service.__file__).parent
PACKAGE = ROOT.name
MOST_LINES = 500
NEVER_LOADED = ("flytekit", "flyte", "pandas", "pyarrow", "duckdb", "redis", "rich")

# docs/architecture.md, "Layers". What stands in one layer does not import each other.
LAYERS: dict[str, int] = {
    "errors": 0,
    "version": 0,
    "config": 1,
    "codec": 1,
    "sdk": 2,
    "runtime": 3,
    "plugins": 4,
    "hosts": 5,
    "wire": 6,
    "telemetry": 6,
    "server": 7,
    "client": 7,
    "local": 8,
    "testing": 9,
    "cli": 9,
}
# The package's own front re-exports the SDK; built-in connectors are loaded as a stranger's.
FRONT = "__init__"
CONNECTORS = "connectors"
ALLOWED_TO = {FRONT: {"errors", "sdk", "version"}, CONNECTORS: {"errors", "sdk"}}


def modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = (PACKAGE, *path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(source: str, module: str, *, is_package: bool = False) -> set[str]:
    """Name every module of ours that ``source`` imports, wherever the statement stands.

    Imports inside functions and under TYPE_CHECKING count as any other: both bind a module to
    the names of another, and a reader follows them alike.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join((*parts, base)).rstrip(".")
            # `from package import name`: a module of the package, or a name that it defines.
            targets = {f"{base}.{alias.name}" for alias in node.names}
            found |= {target if target in MODULES else base for target in targets}
    return {name for name in found if name.split(".")[0] == PACKAGE and name != module}


def area(module: str) -> str:
    """Return the part of the package that a module belongs to, as the table names it."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else FRONT


def violations(module: str, imported: set[str]) -> Iterator[str]:
    """Say, by name, which imports of ``module`` the layers forbid."""
    own = area(module)
    for name in sorted(imported):
        other = area(name)
        if own == CONNECTORS and other == CONNECTORS:
            if _family(module) != _family(name):
                yield f"{module} imports {name}: a connector imports only its own siblings"
        elif own in ALLOWED_TO:
            if other not in ALLOWED_TO[own]:
                yield f"{module} imports {name}: it may import {sorted(ALLOWED_TO[own])} alone"
            elif own == CONNECTORS and name.count(".") > 1:
                yield f"{module} imports {name}: a connector uses {PACKAGE}.{other} itself"
        elif other in ALLOWED_TO:
            yield f"{module} imports {name}: nobody does"
        elif own not in LAYERS or other not in LAYERS:
            yield f"{module} imports {name}: one of them is in no layer of docs/architecture.md"
        elif other != own and LAYERS[other] >= LAYERS[own]:
            yield f"{module} (layer {LAYERS[own]}) imports {name} (layer {LAYERS[other]})"


def _family(module: str) -> str:
    """Return the connector that a module belongs to: duckdb for connectors.duckdb.files."""
    return module.removeprefix(f"{PACKAGE}.").split(".")[1] if "." in module else module


def imports_of(module: str) -> set[str]:
    path = MODULES[module]
    text = path.read_text(encoding="utf-8")
    return imports(text, module, is_package=path.name == "__init__.py")


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_lower_layers(module: str) -> None:
    """Every import of every module stands in a lower layer or in the module's own package."""
    assert list(violations(module, imports_of(module))) == []


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_in_the_table(module: str) -> None:
    """A new part of the package gets a layer in docs/architecture.md before it gets code."""
    assert area(module) in {*LAYERS, *ALLOWED_TO}


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Within a package modules stand in an order: each imports from earlier ones."""
    # A package's __init__ re-exports its modules and is no earlier module of theirs.
    graph = {
        module: {name for name in imports_of(module) if name in MODULES}
        for module in MODULES
        if MODULES[module].name != "__init__.py"
    }
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")
    assert set(graph) <= set(order)


@pytest.mark.parametrize(
    ("module", "source", "caught"),
    [
        ("errors", "import connector_service.config", "layer 0"),
        ("sdk.x", "from connector_service.runtime import call", "layer 3"),
        ("sdk.x", "from connector_service import runtime", "layer 3"),
        ("sdk.x", "def f():\n    from ..hosts import inline", "layer 5"),
        ("runtime.x", "if TYPE_CHECKING:\n    from connector_service.wire import v1", "layer 6"),
        ("wire.x", "import connector_service.telemetry.metrics as m", "layer 6"),
        ("telemetry.x", "from connector_service.wire.status import CODES", "layer 6"),
        ("plugins.x", "from connector_service.hosts.inline import InlineHost", "layer 5"),
        ("client", "import os, connector_service.server.server", "layer 7"),
        ("cli.x", "from connector_service.testing import serve", "layer 9"),
        ("cli.x", "from connector_service.connectors.sleep import SleepConnector", "nobody does"),
        ("server.x", "from connector_service import Resource", "nobody does"),
        ("connectors.x", "from connector_service.config import Config", "alone"),
        ("connectors.x", "from connector_service import Resource", "alone"),
        ("connectors.x", "from connector_service.sdk.secrets import redact", "sdk itself"),
        ("connectors.x", "from connector_service.connectors import sleep", "own siblings"),
        ("connectors.x", "from .sleep import SleepConnector", "own siblings"),
        ("novel.x", "import connector_service.errors", "in no layer"),
    ],
)
def test_a_doctored_source_is_caught(module: str, source: str, caught: str) -> None:
    """The check sees every form of import, wherever it stands: it is not green by blindness."""
    name = f"{PACKAGE}.{module}"
    found = list(violations(name, imports(source, name)))
    assert len(found) == 1
    assert caught in found[0]
    assert name in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("sdk.x", "from connector_service.codec.literals import to_literal"),
        ("sdk.x", "from . import resource"),
        ("cli.x", "from connector_service import config\nimport grpc"),
        ("connectors.duckdb", "from connector_service.connectors.duckdb.files import read"),
        ("connectors.duckdb", "from connector_service.sdk import Resource"),
    ],
)
def test_an_honest_source_passes(module: str, source: str) -> None:
    """The check forbids nothing that docs/architecture.md allows."""
    name = f"{PACKAGE}.{module}"
    assert list(violations(name, imports(source, name))) == []


LISTING = """
import json, sys
{statement}
print(json.dumps(sorted({{name.split(".")[0] for name in sys.modules}})))
"""


@pytest.mark.parametrize(
    "statement",
    [
        "import connector_service",
        "import connector_service.local, connector_service.testing\n"
        "import connector_service.cli.main as m\n"
        "assert all(m.cli.get_command(None, name) for name in m.cli.list_commands(None))",
        "import asyncio, connector_service.testing as t\n"
        "async def main():\n"
        "    async with t.serve() as served, served.client() as client:\n"
        "        assert await client.list_agents() == []\n"
        "asyncio.run(main())",
    ],
    ids=["import", "commands", "serving"],
)
def test_heavy_libraries_are_never_imported(statement: str) -> None:
    """Neither the import nor serving loads an SDK, pandas, pyarrow, or what an extra brings."""
    run = subprocess.run(
        [sys.executable, "-c", LISTING.format(statement=statement)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert run.returncode == 0, run.stderr
    loaded = json.loads(run.stdout.splitlines()[-1])
    assert PACKAGE in loaded
    assert [name for name in NEVER_LOADED if name in loaded] == []


PUBLIC = [module for module in MODULES if not any(p.startswith("_") for p in module.split("."))]


def exported(module: str) -> list[str] | None:
    for node in ast.parse(MODULES[module].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return [ast.literal_eval(name) for name in node.value.elts]  # type: ignore[attr-defined]
    return None


def is_bare(module: str) -> bool:
    """Tell whether a module is but a docstring, as a package's front often is."""
    return len(ast.parse(MODULES[module].read_text(encoding="utf-8")).body) <= 1


@pytest.mark.parametrize("module", [m for m in PUBLIC if not is_bare(m) and area(m) != "version"])
def test_exports_are_explicit_sorted_and_real(module: str) -> None:
    """`__all__` is there, sorted as ruff sorts it, without repeats, and each name exists."""
    names = exported(module)
    assert names, f"{module} has no __all__"

    def rank(name: str) -> tuple[int, str]:
        """Constants, then classes, then the rest, as ruff's RUF022 has it."""
        return (0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2, name)

    assert names == sorted(names, key=rank)
    assert len(names) == len(set(names))
    if "duckdb" in module:
        pytest.importorskip("duckdb")
    if module.endswith("local.flytekit"):
        pytest.importorskip("flytekit")
    loaded = importlib.import_module(module)
    assert [name for name in names if not hasattr(loaded, name)] == []


def test_the_front_has_no_code() -> None:
    """The package's `__init__` is a docstring, imports and `__all__`, nothing else."""
    body = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8")).body
    assert {type(node) for node in body[1:]} == {ast.ImportFrom, ast.Assign}
    assert set(exported(PACKAGE) or ()) >= set(importlib.import_module(f"{PACKAGE}.sdk").__all__)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_fits_a_readers_head(module: str) -> None:
    """At 500 lines a module is split, and each opens with its one sentence."""
    text = MODULES[module].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    first = (ast.get_docstring(ast.parse(text)) or "").splitlines()[:1]
    assert first
    assert first[0].endswith((".", "``", ":")), f"{module}: {first[0]!r} is no sentence"


def drawn_tree() -> dict[str, str]:
    """Read the tree in errors.py's docstring: error -> the one it hangs from."""
    tree: dict[str, str] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.fullmatch(r"([│├└─\s]*?)(\w+(?:Error|Fault))(?:\s{2,}.+)?", line)
        if found is None:
            continue
        depth = len(found[1]) // 4
        tree[found[2]] = above[depth - 1] if depth else ""
        above[depth:] = [found[2]]
    return tree


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    """Every error class stands in the docstring, under the class it derives from first."""
    real = {
        name: "" if kind is errors.ConnectorServiceError else kind.__bases__[0].__name__
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if kind.__module__ == errors.__name__
    }
    assert drawn_tree() == real


def test_every_error_says_what_it_means() -> None:
    """Each class has a docstring, and its text is one that callers may read."""
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert kind.__doc__, name
        assert issubclass(kind, errors.ConnectorServiceError), name
    assert set(errors.__all__) == set(drawn_tree())


@pytest.mark.parametrize("field", list(config.fields()), ids=lambda field: field.name)
def test_a_setting_is_described_and_has_three_spellings(
    field: config.Field, tmp_path: Path
) -> None:
    """File, environment and flag set the same value, and the description is a sentence."""
    assert len(field.description) > 15
    assert field.description.endswith("."), field.description
    value, text = _another(field)
    file = tmp_path / "settings.toml"
    file.write_text(f"{field.name} = {json.dumps(value)}\n")
    given = [
        config.load(file=file),
        config.load(environ={f"{config.ENV_PREFIX}{field.name.upper()}": text}, file=os.devnull),
        config.load({field.name: value}, file=os.devnull),
    ]
    expected = tuple(value) if isinstance(value, list) else value
    for loaded in given:
        assert getattr(getattr(loaded, field.concern), field.name) == expected != field.default
    flags = {
        option
        for command in ("serve",)
        for parameter in importlib.import_module(f"{PACKAGE}.cli.{command}").serve.params
        for option in parameter.opts
    }
    assert f"--{field.name.replace('_', '-')}" in flags


def _another(field: config.Field) -> tuple[object, str]:
    """Return a valid value that is not the default, and its spelling in the environment."""
    if field.choices and field.repeatable:
        return [field.choices[-1]], field.choices[-1]
    if field.choices:
        choice = next(choice for choice in field.choices if choice != field.default)
        return choice, choice
    if field.repeatable and field.default:
        return list(field.default[:1]), field.default[0]
    if field.name == "host_from":
        return ["flytekit", "module:acme"], "flytekit, module:acme"
    if field.repeatable:
        return ["one", "two*"], "one, two*"
    if isinstance(field.default, bool):
        return not field.default, str(not field.default).lower()
    if isinstance(field.default, int | float):
        return field.default + 1, str(field.default + 1)
    return "elsewhere", "elsewhere"
