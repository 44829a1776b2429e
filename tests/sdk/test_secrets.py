"""Secrets: where they are found, and that they stay out of what people read."""

from __future__ import annotations

import json
import time
from pathlib import Path
from urllib.parse import quote

import pytest

from connector_service import get_connector_secret
from connector_service.errors import ConnectorServiceError, SecretNotFoundError
from connector_service.sdk.secrets import redact


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of secrets of this test's own, and no setting of the machine's."""
    for name in ("FLYTE_SECRETS_ENV_PREFIX", "FLYTE_SECRETS_FILE_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FLYTE_SECRETS_DEFAULT_DIR", str(tmp_path))
    return tmp_path


def test_the_prefixed_variable_then_the_plain_one_then_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The three places are asked in upstream's order, the first that has the secret wins."""
    (folder / "warehouse_key").write_text("from the file")
    assert get_connector_secret("Warehouse_Key") == "from the file"
    monkeypatch.setenv("WAREHOUSE_KEY", "from the plain variable")
    assert get_connector_secret("Warehouse_Key") == "from the plain variable"
    monkeypatch.setenv("_FSEC_WAREHOUSE_KEY", "from the prefixed variable")
    assert get_connector_secret("Warehouse_Key") == "from the prefixed variable"


def test_prefixes_and_folder_are_settable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The three variables that upstream reads move the places."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "pre_some_key").write_text("from the file")
    monkeypatch.setenv("FLYTE_SECRETS_DEFAULT_DIR", str(other))
    monkeypatch.setenv("FLYTE_SECRETS_FILE_PREFIX", "pre_")
    monkeypatch.setenv("FLYTE_SECRETS_ENV_PREFIX", "MINE_")
    monkeypatch.setenv("_FSEC_SOME_KEY", "not looked at")
    assert get_connector_secret("some_key") == "from the file"
    monkeypatch.setenv("MINE_SOME_KEY", "from the variable")
    assert get_connector_secret("some_key") == "from the variable"


def test_a_rotated_secret_is_seen_at_once(folder: Path) -> None:
    """The file is read at every call, also when it is swapped as Kubernetes does."""
    (folder / "v1").write_text("first-value")
    (folder / "v2").write_text("second-value")
    link = folder / "rotating"
    link.symlink_to("v1")
    assert get_connector_secret("rotating") == "first-value"
    swapped = folder / "swapped"
    swapped.symlink_to("v2")
    swapped.replace(link)
    assert get_connector_secret("rotating") == "second-value"


def test_white_space_around_a_secret_is_dropped(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line end that editors add to a file is no part of the secret."""
    (folder / "from_file").write_text(" white with spaces \r\n\n")
    monkeypatch.setenv("FROM_ENV", "\tfrom-the-environment\n")
    assert get_connector_secret("from_file") == "white with spaces"
    assert get_connector_secret("from_env") == "from-the-environment"


def test_a_missing_secret_tells_the_operator_where_to_put_it(folder: Path) -> None:
    """The log names the three places; the caller is told only that it is missing."""
    with pytest.raises(SecretNotFoundError) as caught:
        get_connector_secret("absent_key")
    assert str(caught.value) == (
        "No secret 'absent_key': set _FSEC_ABSENT_KEY (or ABSENT_KEY) in the service's"
        f" environment, or put it in {folder}/absent_key (No such file or directory)."
    )
    assert caught.value.public == (
        "The service has no secret 'absent_key'; its operator must add it."
    )
    assert isinstance(caught.value, ValueError)  # what upstream raises


@pytest.mark.parametrize("key", ["../outside", "a/../../outside", "{outside}", "..", "", "nul\0"])
def test_a_key_is_no_path(folder: Path, key: str) -> None:
    """A key that comes from a task's template reads no file but a secret."""
    outside = folder.parent / "outside"
    outside.write_text("not a secret")
    with pytest.raises(SecretNotFoundError):
        get_connector_secret(key.format(outside=outside))


def test_a_secret_in_a_group_is_found(folder: Path) -> None:
    """A key may have a folder: that is how upstream mounts groups."""
    (folder / "group").mkdir()
    (folder / "group" / "key").write_text("value-in-group")
    assert get_connector_secret("group/key") == "value-in-group"


def test_a_secret_that_is_no_text_is_reported(folder: Path) -> None:
    """Bytes that are not UTF-8 end in our error, and none of them in its text."""
    (folder / "binary").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(ConnectorServiceError, match=r"binary \(not UTF-8 text\)\.$"):
        get_connector_secret("binary")


PEM = "-----BEGIN {0}PRIVATE KEY-----\nMIIEvQIBADAN\nhkiG9w0BAQE\n-----END {0}PRIVATE KEY-----"
ACCOUNT = json.dumps(
    {"type": "service_account", "private_key": PEM.format("") + "\n", "client_id": "42"}
)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        # urls
        ("postgres://user:hunter2@db:5432/x", "postgres://user:***@db:5432/x"),
        ("redis://:hunter2@cache/0", "redis://:***@cache/0"),
        ("amqp://u:p%40ss@h and amqp://v:q@h", "amqp://u:***@h and amqp://v:***@h"),
        ("mysql+pymysql://u:p@ss:w@host/db", "mysql+pymysql://u:***@host/db"),
        # bearer and basic
        ("Authorization: Bearer eyJhbGciOi.J9.x-y_z", "Authorization: Bearer ***"),
        ("sent bearer 0123456789abcdef to it", "sent bearer *** to it"),
        ("Basic dXNlcjpwYXNzd29yZA==", "Basic ***"),
        ("authorization: basic abcd", "authorization: basic ***"),
        ('{"Authorization": "Bearer abc def"}', '{"Authorization": "Bearer ***"}'),
        # names and values
        ("password=hunter2", "password=***"),
        ("PASSWORD = hunter2, next=1", "PASSWORD = ***, next=1"),
        ("Server=db;Pwd=hunter2;Uid=me", "Server=db;Pwd=***;Uid=me"),
        ("AWS_SECRET_ACCESS_KEY=abc/def+ghi x", "AWS_SECRET_ACCESS_KEY=*** x"),
        ("?api_key=abc&page=2", "?api_key=***&page=2"),
        ("api-key: abc", "api-key: ***"),
        ("X-Auth-Token: abc", "X-Auth-Token: ***"),
        ("access_token=abc", "access_token=***"),
        ("passphrase='correct horse'", "passphrase='***'"),
        ('password="correct horse \\" battery" x', 'password="***" x'),
        ("client_secret: abc", "client_secret: ***"),
        # JSON, Python, JSON within JSON
        ('{"password": "correct horse", "n": 1}', '{"password": "***", "n": 1}'),
        ("{'token': 'a b', 'n': 1}", "{'token': '***', 'n': 1}"),
        ("{'token': b'abc', 'n': 1}", "{'token': b'***', 'n': 1}"),
        (r'{"body": "{\"token\": \"a b\"}"}', r'{"body": "{\"token\": \"***\"}"}'),
        # private keys
        (f"before {PEM.format('')} after", "before *** after"),
        (f"{PEM.format('RSA ')}\n{PEM.format('EC ')}", "***\n***"),
        ("cut -----BEGIN PRIVATE KEY-----\nMIIE", "cut ***"),
        (ACCOUNT, '{"type": "service_account", "private_key": "***", "client_id": "42"}'),
    ],
)
def test_what_looks_like_a_credential_is_masked(text: str, masked: str) -> None:
    """Whoever wrote it, in whatever notation, the value goes and the rest stays."""
    assert redact(text) == masked
    assert redact(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        "Basic authentication failed",
        "bearer authentication required",
        "a basic understanding of tokens",
        "Invalid token",
        "The password is wrong",
        "max_tokens=512 completion_tokens: 12",
        "tokenizer: llama",
        "secretary: Bob",
        "see http://host:8080/path?x=1 or mail me@example.org",
        '{"url":"http://host:80","mail":"me@example.org"}',
        "https://example.org/a:b@c",
        "table 'x' at line 3: syntax error near '='",
        "author: someone, key: value, keys=3",
        'password="" token=',
        "-----BEGIN CERTIFICATE-----\nMIIC\n-----END CERTIFICATE-----",
        "",
    ],
)
def test_ordinary_words_stay(text: str) -> None:
    """Prose about credentials, addresses and counts is not blotted out."""
    assert redact(text) == text


def test_a_secret_that_was_handed_out_is_masked_anywhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value is known once it was given, also inside other text, its lines and in a URL."""
    (folder / "handed").write_text("plain words/as a secret")
    (folder / "lines").write_text("first-line-of-it\nsecond-line-of-it\n")
    before = "saw plain words/as a secret here"
    assert redact(before) == before
    value = get_connector_secret("handed")
    get_connector_secret("lines")
    assert redact(before) == "saw *** here"
    assert redact(f"GET /?q={quote(value, safe='')}") == "GET /?q=***"
    assert redact("a first-line-of-it b\nsecond-line-of-it") == "a *** b\n***"


def test_the_longest_of_overlapping_secrets_is_masked_whole(folder: Path) -> None:
    """A secret that begins with another one leaves no tail behind."""
    (folder / "short").write_text("overlap")
    (folder / "long").write_text("overlapping-more")
    get_connector_secret("short")
    get_connector_secret("long")
    assert redact("x overlapping-more y overlap z") == "x *** y *** z"


def test_a_short_value_is_not_masked(folder: Path) -> None:
    """A secret of a few letters would blot out ordinary words."""
    (folder / "tiny").write_text("dev")
    get_connector_secret("tiny")
    assert redact("the device") == "the device"


def test_a_key_file_that_was_handed_out_hides_no_other_key(folder: Path) -> None:
    """The first line of one private key, once known, does not unmask the next one's body."""
    (folder / "key_file").write_text(PEM.format(""))
    get_connector_secret("key_file")
    other = PEM.format("").replace("MIIEvQ", "OTHERK")
    assert redact(other) == "***"


def test_secrets_that_rotate_for_ever_do_not_fill_the_memory(folder: Path) -> None:
    """Only the latest thousand values are kept, and the latest are masked."""
    from connector_service.sdk import secrets  # noqa: PLC0415 - its private store is looked at

    file = folder / "rotating"
    for number in range(1100):
        file.write_text(f"rotated-value-{number:05}")
        get_connector_secret("rotating")
    assert len(secrets._seen) <= secrets._MOST_VALUES
    assert redact("rotated-value-01099") == "***"


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "a.",
        "password",
        "password ",
        "token=",
        'secret="\\',
        "bearer ",
        "bearer a",
        "Bearer A",
        "://a:",
        "://",
        "-----BEGIN ",
        "-----BEGIN PRIVATE KEY-----",
    ],
)
def test_redacting_takes_time_in_proportion(unit: str) -> None:
    """Four times the text takes about four times as long, whatever it is made of."""

    def seconds(size: int) -> float:
        for text in (unit * (size // len(unit)), unit + "a" * size):
            started = time.perf_counter()
            redact(text)
            slowest.append(time.perf_counter() - started)
        return max(slowest[-2:])

    slowest: list[float] = []
    small = min(seconds(60_000) for _ in range(3))
    large = seconds(240_000)
    assert large < 10 * small + 0.2
    assert large < 2
