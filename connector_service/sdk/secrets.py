"""Secrets for connectors, found where Flyte mounts them, and kept out of what people read."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

from connector_service.errors import SecretNotFoundError

__all__ = ["get_connector_secret", "redact"]

_MASK = "***"
_SHORTEST = 4  # masking a shorter value would blot out ordinary words
_MOST_VALUES = 1000  # a connector that rotates secrets must not grow this for ever

_seen: dict[str, None] = {}
_seen_lock = threading.Lock()

# What looks like a credential in free text, whoever wrote it.
_PATTERNS = (
    re.compile(r"(?i)(\b(?:bearer|basic)\s+)[A-Za-z0-9+/_.~=-]{8,}"),
    re.compile(
        r"(?i)([\w.-]*(?:password|passwd|pwd|secret|token|api[_-]?key|access[_-]?key|credential"
        r"|private[_-]?key|authorization)[\w.-]*[\"']?\s*[=:]\s*[\"']?)(?!(?:bearer|basic)\b)"
        r"[^\s\"',;&)}\]]+"
    ),
    re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s:/@]*:)[^\s/@]+(?=@)"),
)
_PEM = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
)


def get_connector_secret(key: str) -> str:
    """Return the secret called ``key``, read afresh, so a rotated one is seen at once.

    Looked up as flytekit does (``SecretsManager.get``): the environment variable
    ``$FLYTE_SECRETS_ENV_PREFIX`` (``_FSEC_``) + KEY, the variable KEY, then the file
    ``$FLYTE_SECRETS_DEFAULT_DIR`` (``/etc/secrets``) / ``$FLYTE_SECRETS_FILE_PREFIX`` + key, in
    lower case. White space around the value is dropped.

    Raises:
        SecretNotFoundError: In none of the three; it names them.
    """
    variable = f"{os.environ.get('FLYTE_SECRETS_ENV_PREFIX', '_FSEC_')}{key.upper()}"
    for name in (variable, key.upper()):
        if (value := os.environ.get(name)) is not None:
            return _remember(value.strip())
    folder = Path(os.environ.get("FLYTE_SECRETS_DEFAULT_DIR", "/etc/secrets"))
    file_name = f"{os.environ.get('FLYTE_SECRETS_FILE_PREFIX', '')}{key.lower()}"
    path = folder / file_name
    if ".." in Path(file_name).parts:
        raise SecretNotFoundError(key, "a key is a plain name, not a path upwards")
    try:
        return _remember(path.read_text(encoding="utf-8").strip())
    except OSError as error:
        raise SecretNotFoundError(
            key,
            f"set {variable} (or {key.upper()}) in the service's environment, or put it in {path}"
            f" ({error.strerror})",
        ) from None


def redact(text: str) -> str:
    """Mask every secret that was handed out, and whatever looks like a credential."""
    if _seen:
        with _seen_lock:
            values = sorted(_seen, key=len, reverse=True)
        for value in values:
            if value in text:
                text = text.replace(value, _MASK)
    for pattern in _PATTERNS:
        text = pattern.sub(rf"\g<1>{_MASK}", text)
    return _PEM.sub(_MASK, text)


def _remember(value: str) -> str:
    if len(value) >= _SHORTEST:
        with _seen_lock:
            for part in {value, *(line for line in value.splitlines() if len(line) > _SHORTEST)}:
                _seen.pop(part, None)
                _seen[part] = None
            while len(_seen) > _MOST_VALUES:
                del _seen[next(iter(_seen))]
    return value
