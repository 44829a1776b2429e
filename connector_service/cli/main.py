"""The command's entry: one group, and one place where errors become a sentence and a code."""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from connector_service.errors import ConnectorServiceError, OperatorError
from connector_service.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["cli", "lasting", "main"]

# gRPC's C++ core writes to standard error by itself, in a format of its own, what also reaches
# us as an exception. It reads this once, when it is first imported; a caller's own value stays.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

# Command -> module and attribute, imported only when used: `call` need not load the server.
_COMMANDS: Mapping[str, tuple[str, str]] = {
    "call": ("connector_service.cli.call", "call"),
    "describe": ("connector_service.cli.inspect", "describe"),
    "list": ("connector_service.cli.inspect", "list_"),
    "reload": ("connector_service.cli.reload", "reload_"),
    "run": ("connector_service.cli.run", "run"),
    "serve": ("connector_service.cli.serve", "serve"),
}
_INTERRUPTED = 130


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """Import what lives as long as the process: no collection walks it, now or later.

    Those of one start of the service would cost an eighth of it, to find some 400 KB.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class _LazyGroup(click.Group):
    def list_commands(self, _ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[name]
        with lasting():
            command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="connector-service")
def cli() -> None:
    """Run Flyte connectors as a service, and look at one that runs.

    Exit codes: 0 done; 1 the call or the job failed; 2 wrong usage or settings; 3 the service
    could not start.
    """
    # Commands print what they have to say; only `serve` keeps a log.
    logging.getLogger().addHandler(logging.NullHandler())


def main(arguments: list[str] | None = None) -> None:
    """Run the command and leave with its exit code; every error is one sentence."""
    try:
        # Without its standalone mode, click returns the code of `--help` and of ctx.exit().
        sys.exit(cli.main(arguments, prog_name="connector-service", standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(_INTERRUPTED)
    except OperatorError as error:
        _fail(error, error.exit_code)
    except ConnectorServiceError as error:
        _fail(error, 1)
    except Exception as error:
        if (sentence := _refusal(error)) is None:
            raise
        _fail(sentence, 1)


def _fail(error: object, code: int) -> None:
    click.echo(f"Error: {error}", err=True)
    sys.exit(code)


def _refusal(error: Exception) -> str | None:
    """Put a gRPC status in a sentence; None for anything else, which is a bug of ours."""
    status: Any = getattr(error, "code", None)
    details: Any = getattr(error, "details", None)
    if not callable(status) or not callable(details) or not hasattr(status(), "name"):
        return None
    hint = ""
    if status().name == "UNAVAILABLE":
        hint = " Is the service running there? Check --endpoint."
    elif status().name == "DEADLINE_EXCEEDED":
        hint = " Give it longer with --timeout."
    sentence = (details() or "the service gave no reason").rstrip(".")
    return f"{status().name}: {sentence}.{hint}"
