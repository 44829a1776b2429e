"""Remote hosts over TLS: real certificates, of the peer and of ours, good and bad."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from hosts.remotes import GET1, Remotes, agent, agents, call, got
from peers import LISTS, answering, peer

from connector_service.errors import ConfigError, HostError
from connector_service.hosts.outer import HostStatus
from connector_service.sdk.method import Operation


class Certificates:
    """An authority, and certificates that it signed; all made by openssl."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = self._run(
            "ca", "req", "-x509", "-subj", "/CN=authority", "-addext", "basicConstraints=CA:TRUE"
        )

    def _run(self, name: str, *arguments: str) -> Path:
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        command = ["openssl", *arguments, "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        command += ["-nodes", "-keyout", str(key), "-out", str(cert), "-days", "2"]
        subprocess.run(command, check=True, capture_output=True)
        return cert

    def lock(self, key: Path, file: Path) -> None:
        command = ["openssl", "ec", "-in", str(key), "-aes256", "-passout", "pass:geheim"]
        subprocess.run([*command, "-out", str(file)], check=True, capture_output=True)

    def sign(self, name: str, *names: str) -> tuple[Path, Path]:
        cert = self._run(
            name,
            *("req", "-x509", "-CA", str(self.ca), "-CAkey", str(self.folder / "ca.key")),
            *("-subj", f"/CN={name}"),
            *("-addext", f"subjectAltName={','.join(names or (f'DNS:{name}',))}"),
            *("-addext", "basicConstraints=critical,CA:FALSE"),
        )
        return cert, self.folder / f"{name}.key"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


def credentials(pair: Sequence[Path], ca: Path | None = None) -> grpc.ServerCredentials:
    cert, key = (file.read_bytes() for file in pair)
    return grpc.ssl_server_credentials(
        [(key, cert)],
        root_certificates=None if ca is None else ca.read_bytes(),
        require_client_auth=ca is not None,
    )


TLS_ANSWERS = {LISTS["flyteidl"]: answering(agents(agent("spark"))), GET1: answering(got())}


async def test_tls_is_spoken_and_the_name_is_checked(
    host: Remotes, certificates: Certificates
) -> None:
    """The endpoint's certificate must be of its name, or of ``server_name``, and of our ``ca``."""
    pair = certificates.sign("far.example")
    ca = str(certificates.ca)
    async with peer(TLS_ANSWERS, credentials=credentials(pair)) as other:
        good = await host(other.endpoint, tls=True, ca=ca, server_name="far.example")
        assert (await good.run(call(Operation.GET, "spark"))).message == "m"
        for section in (
            {"tls": True, "ca": ca},  # 127.0.0.1 is not its name
            {"tls": True, "server_name": "far.example"},  # nobody's authority
            {"tls": True, "ca": str(certificates.sign("other")[0]), "server_name": "far.example"},
            {},  # no TLS
        ):
            bad = await host(other.endpoint, **section)
            assert bad.snapshot().status is HostStatus.DOWN
            assert dict(bad.categories()) == {}


async def test_a_certificate_of_ours_is_shown_and_taken_up_anew_by_a_reload(
    host: Remotes, certificates: Certificates, tmp_path: Path
) -> None:
    """Mutual TLS works; ``reload`` reads files that were replaced; bad ones change nothing."""
    pair = certificates.sign("mutual", "IP:127.0.0.1")
    ours = certificates.sign("client")
    names: list[Any] = []

    async def get(_request: bytes, context: Any) -> bytes:
        names.append(context.auth_context()["x509_common_name"])
        return got()

    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    for file, made in ((cert, ours[0]), (key, ours[1])):
        file.write_bytes(made.read_bytes())
    server = credentials(pair, certificates.ca)
    async with peer({**TLS_ANSWERS, GET1: get}, credentials=server) as other:
        section = {"tls": True, "ca": str(certificates.ca), "cert": str(cert), "key": str(key)}
        remote = await host(other.endpoint, **section)
        await remote.run(call(Operation.GET, "spark"))
        cert.write_text("no certificate")
        with pytest.raises(HostError, match=r"hosts\.far\.cert: .*stays in use\."):
            await remote.reload()
        renewed = certificates.sign("renewed")
        for file, made in ((cert, renewed[0]), (key, renewed[1])):
            file.write_bytes(made.read_bytes())
        await remote.run(call(Operation.GET, "spark"))
        await remote.reload()
        await remote.run(call(Operation.GET, "spark"))
        without = await host(other.endpoint, tls=True, ca=str(certificates.ca))
        assert without.snapshot().status is HostStatus.DOWN
    assert names == [[b"client"], [b"client"], [b"renewed"]]


@pytest.mark.parametrize(
    ("field", "content", "sentence"),
    [
        ("ca", None, "cannot be read"),
        ("ca", "", "holds no PEM certificate"),
        ("ca", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n", "no PEM certificate"),
        ("cert", None, "cannot be read"),
        ("key", None, "cannot be read"),
        ("key", "other", "give a pair that belongs together"),
        ("key", "locked", "without a password"),
    ],
)
async def test_files_that_cannot_be_used_stop_the_start(
    host: Remotes,
    certificates: Certificates,
    tmp_path: Path,
    field: str,
    content: str | None,
    sentence: str,
) -> None:
    """One sentence names the setting and the file, before any connection is tried."""
    pair = certificates.sign("mine")
    files = {"ca": certificates.ca, "cert": pair[0], "key": pair[1]}
    files[field] = tmp_path / "file.pem"
    if content == "other":
        files[field].write_bytes(certificates.sign("another")[1].read_bytes())
    elif content == "locked":
        certificates.lock(pair[1], files[field])
    elif content is not None:
        files[field].write_text(content)
    section = {name: str(file) for name, file in files.items()}
    remote = await host("127.0.0.1:1", start=False, tls=True, **section)
    with pytest.raises(ConfigError, match=rf"hosts\.far\.{field}|hosts\.far\.cert") as caught:
        await remote.start()
    assert sentence in str(caught.value)
    assert str(files[field]) in str(caught.value)
