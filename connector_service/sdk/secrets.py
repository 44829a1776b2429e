"""Secrets for connectors, found where Flyte mounts them, and kept out of what people read."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from urllib.parse import quote

from connector_service.errors import SecretNotFoundError

__all__ = ["get_connector_secret", "mask", "redact"]

_MASK = "***"
_SHORTEST = 4  # masking a shorter value would blot out ordinary words
_MOST_VALUES = 1000  # a connector that rotates secrets must not grow this for ever

_seen: dict[str, None] = {}
_seen_lock = threading.Lock()

# A private key, whole: the patterns below would mask its first line and leave the rest.
_PEM = re.compile(
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
# What looks like a credential in free text, whoever wrote it. Nothing that repeats stands at a
# pattern's left without a bound, so the time is linear whatever the text.
_PATTERNS = (
    # `Basic authentication` is prose: a credential has a digit, mixed case, or much length.
    re.compile(
        r"(\b(?i:bearer|basic)\s{1,8})"
        r"(?=[\w+/.~=-]*?\d|(?=[\w+/.~=-]*[a-z])[\w+/.~=-]+?[A-Z]|[\w+/.~=-]{24})[\w+/.~=-]{8,}"
    ),
    # password=..., "api_key": "...", \"token\": \"...\"; a value in quotes ends with its quote.
    # Counting `tokens`, a `tokenizer` and a `secretary` are no secrets.
    re.compile(
        r"(?i)((?:passw(?:or)?d|passphrase|pwd|secret(?!ar)|token(?!s\b|iz)|api[_-]?key|access[_-]?key"
        r"|credential|private[_-]?key|authorization)[\w.-]{0,64}\\{0,3}[\"']?\s{0,8}[=:]\s{0,8}"
        r"(?:b?(\")|b?(')|(\\{1,3}[\"']))?(?:(?:bearer|basic)\s{1,8})?)"
        r"(?(2)(?:\\.|[^\"\\\n])+|(?(3)(?:\\.|[^'\\\n])+|(?(4)[^\"'\\\n]+|[^\s\"',;&)}\]]+)))"
    ),
    # scheme://user:password@host; up to the last @ before the path, for a password may hold one.
    re.compile(r"(://[^\s:/@]{0,256}:)[^\s/\"<>]+(?=@)"),
)


# Without one of these no pattern matches: most lines are spared the search. Letters beyond ASCII
# may be variants of theirs, so such a text is searched anyhow.
_HINTS = ("pass", "pwd", "secret", "token", "key", "credential", "auth", "bearer", "basic", "://")


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
            return mask(value.strip())
    if Path(key).is_absolute() or ".." in Path(key).parts:
        # A key may come from a task's template; it must not choose any file of this machine.
        raise SecretNotFoundError(key, "a key is a plain name, not a path elsewhere")
    folder = Path(os.environ.get("FLYTE_SECRETS_DEFAULT_DIR", "/etc/secrets"))
    path = folder / f"{os.environ.get('FLYTE_SECRETS_FILE_PREFIX', '')}{key.lower()}"
    try:
        return mask(path.read_text(encoding="utf-8").strip())
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the key
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SecretNotFoundError(
            key,
            f"set {variable} (or {key.upper()}) in the service's environment, or put it in {path}"
            f" ({reason})",
        ) from None


def redact(text: str) -> str:
    """Mask every secret that was handed out, and whatever looks like a credential."""
    if "-----BEGIN" in text:
        text = _PEM.sub(_MASK, text)
    if _seen:
        with _seen_lock:
            values = sorted(_seen, key=len, reverse=True)
        for value in values:
            if value in text:
                text = text.replace(value, _MASK)
    if text.isascii() and not _hinted(text.lower()):
        return text
    for pattern in _PATTERNS:
        text = pattern.sub(rf"\g<1>{_MASK}", text)
    return text


def _hinted(lowered: str) -> bool:
    return any(hint in lowered for hint in _HINTS)


def mask(value: str) -> str:
    """Have ``redact`` mask ``value`` from now on, and return it."""
    if len(value) >= _SHORTEST:
        with _seen_lock:
            lines = (line for line in value.splitlines() if len(line) > _SHORTEST)
            for part in dict.fromkeys((value, quote(value, safe=""), *lines)):
                _seen.pop(part, None)
                _seen[part] = None
            while len(_seen) > _MOST_VALUES:
                del _seen[next(iter(_seen))]
    return value
