"""Write an authority, a certificate of the names given and an RSA key into a folder.

Runs in the backends' environment: ``python keys_program.py FOLDER NAME...``.
"""

import sys
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

folder = Path(sys.argv[1])
authority = trustme.CA()
server = authority.issue_cert(*sys.argv[2:])
authority.cert_pem.write_to_path(str(folder / "ca.pem"))
server.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
(folder / "rsa.pem").write_bytes(
    key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
)
