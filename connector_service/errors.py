"""The tree of errors: whose fault each one is, in words that say what to do next.

No gRPC here: ``wire/status.py`` maps this tree to status codes, in one table.

ConnectorServiceError
├── OperatorError                  the operator's to mend: start-up stops with ``exit_code``
│   ├── ConfigError                a setting is unknown, malformed or contradicts another
│   └── StartupError               the service could not start with valid settings
│       ├── PluginError            a plugin could not be loaded and --strict is on
│       └── HostError              a host could not be started or reloaded
├── AuthorError                    the connector author's: its class or registration is wrong
│   └── DuplicateConnectorError    two connectors want one task category
├── CallError                      the caller's: this call cannot be answered as asked
│   ├── ConnectorNotFoundError     nobody registered the task category
│   ├── InvalidRequestError        a field is missing, malformed or out of order
│   │   └── InvalidMetaError       the resource meta is not one of this connector's
│   ├── UnsupportedOperationError  the connector has no such operation
│   ├── WrongKindError             a sync call on an async connector, or the reverse
│   ├── DeadlineError              the caller's time is up
│   └── UnavailableError           the service cannot take the call now; try again
│       └── LedgerDownError        where created jobs are remembered cannot be reached
├── ConnectorFault                 the connector's code failed in a way nobody foresaw: a bug
├── JobFailedError                 a job that was run to its end did not succeed
├── SecretNotFoundError            no secret of that name in the environment or the files
└── BackendError                   raised by connectors, their text goes to the caller
    ├── InvalidInputError          the user's: the task's inputs or template are wrong
    ├── PermanentError             retrying cannot help
    ├── TransientError             retrying may help
    └── GoneError                  the remote job no longer exists
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "AuthorError",
    "BackendError",
    "CallError",
    "ConfigError",
    "ConnectorFault",
    "ConnectorNotFoundError",
    "ConnectorServiceError",
    "DeadlineError",
    "DuplicateConnectorError",
    "GoneError",
    "HostError",
    "InvalidInputError",
    "InvalidMetaError",
    "InvalidRequestError",
    "JobFailedError",
    "LedgerDownError",
    "OperatorError",
    "PermanentError",
    "PluginError",
    "SecretNotFoundError",
    "StartupError",
    "TransientError",
    "UnavailableError",
    "UnsupportedOperationError",
    "WrongKindError",
]


class ConnectorServiceError(Exception):
    """The root: catch it to catch everything this package raises on purpose."""

    @property
    def public(self) -> str:
        """The sentence that callers may read."""
        return str(self)


class OperatorError(ConnectorServiceError):
    """Something the operator must mend before the service can run."""

    exit_code = 2


class ConfigError(OperatorError):
    """A setting is unknown, malformed or contradicts another."""


class StartupError(OperatorError):
    """The settings are valid and the service still could not start."""

    exit_code = 3


class PluginError(StartupError):
    """A plugin could not be loaded, and ``--strict`` makes that fatal."""


class HostError(StartupError):
    """A host could not be started, or what a reload brought is not taken; the old one stays."""


class AuthorError(ConnectorServiceError, ValueError):
    """A connector's class or its registration is wrong; the author mends it."""


class DuplicateConnectorError(AuthorError):
    """Two connectors want one task category and neither said ``override=True``."""


class CallError(ConnectorServiceError):
    """This call cannot be answered as asked; the text is safe to show the caller."""


class ConnectorNotFoundError(CallError, LookupError):
    """Nobody registered the task category (or the connector name) that was asked for."""

    def __init__(self, wanted: str, known: Iterable[str]) -> None:
        """Name what was wanted and, shortened, what there is."""
        super().__init__(f"No connector for {wanted}; registered: {_shorten(known)}.")


class InvalidRequestError(CallError, ValueError):
    """A field of the request is missing, malformed or out of order."""


class InvalidMetaError(InvalidRequestError):
    """The resource meta is not one that this connector wrote."""


class UnsupportedOperationError(CallError, NotImplementedError):
    """The connector does not implement this optional operation."""


class WrongKindError(CallError, TypeError):
    """A sync call reached an async connector, or the reverse."""


class DeadlineError(CallError, TimeoutError):
    """The caller's deadline passed before the connector answered."""


class UnavailableError(CallError):
    """The service cannot take this call now; ``retry_after`` says when to try again, in seconds."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        """Take the sentence and the hint."""
        super().__init__(message)
        self.retry_after = retry_after


class LedgerDownError(UnavailableError):
    """The ledger of created jobs cannot be read or written now; ``__cause__`` says why.

    The text names the kind of ledger and of trouble, and no address: callers may read it.
    """


class ConnectorFault(ConnectorServiceError):  # noqa: N818 - a fault, not an error of ours
    """The connector's code failed with something it never announced.

    ``__cause__`` holds what it raised, for the log; the caller sees only its type.
    """


class JobFailedError(ConnectorServiceError, RuntimeError):
    """A job that was run to its end, locally or by the command, did not succeed.

    ``phase`` is the last phase's name (FAILED, ABORTED, RETRYABLE_FAILED, or SUCCEEDED when the
    outputs are missing), ``message`` what the connector said, ``log_links`` its ``TaskLog``s.
    """

    def __init__(self, name: str, phase: str, message: str, log_links: Iterable[Any] = ()) -> None:
        """Take the task's name and what was last known of its job."""
        self.phase = phase
        self.message = message
        self.log_links = tuple(log_links)
        sentence = f"The job of {name!r} ended {phase}: {message or 'no reason was given'}"
        logs = "".join(f"\n  {link.name}: {link.uri}" for link in self.log_links)
        super().__init__(sentence + logs)


class SecretNotFoundError(ConnectorServiceError, ValueError):
    """No secret of that name in the environment or the secret files."""

    def __init__(self, key: str, looked: str) -> None:
        """Name the secret, and for the operator where it was looked for."""
        super().__init__(f"No secret {key!r}: {looked}.")
        self.key = key

    @property
    def public(self) -> str:
        """Leave out where the service keeps its secrets."""
        return f"The service has no secret {self.key!r}; its operator must add it."


class BackendError(ConnectorServiceError):
    """What a connector raises to speak to the caller: its text is shown, redacted and cut.

    ``code`` is a short word for programs (``QuotaExceeded``); it defaults to the class name.
    ``origin`` says whose fault it is: ``user`` or ``system``. Both reach Flyte 1's ``agent_error``.
    """

    default_origin: Literal["user", "system"] = "user"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        origin: Literal["user", "system"] | None = None,
    ) -> None:
        """Take the sentence for people, the code for programs and whose fault it is."""
        super().__init__(message)
        self.code = code or type(self).__name__.removesuffix("Error")
        self.origin: Literal["user", "system"] = origin or self.default_origin


class InvalidInputError(BackendError, ValueError):
    """The task's inputs, template or configuration are wrong; its user mends them."""


class PermanentError(BackendError):
    """The backend refused for good; trying again cannot help."""


class TransientError(BackendError):
    """The backend is busy, restarting or out of reach; trying again may help.

    ``retry_after`` is how long the backend asks to be left alone, in seconds.
    """

    default_origin = "system"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        origin: Literal["user", "system"] | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Take what ``BackendError`` takes, and the backend's wish."""
        super().__init__(message, code=code, origin=origin)
        self.retry_after = retry_after


class GoneError(BackendError):
    """The remote job no longer exists at the backend."""

    default_origin = "system"


def _shorten(names: Iterable[str], most: int = 20) -> str:
    listed = sorted(names)
    if not listed:
        return "none"
    more = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {more} more" if more > 0 else "")
