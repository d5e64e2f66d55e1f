"""Certificates made by the `openssl` command: an authority, a server's and a client's, and a stranger's authority."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HOST = "localhost"  # the only name on the server's certificate: 127.0.0.1 is the wrong host name
CLIENT = "cdc-certified"
# No default extensions, so that -addext alone says what a certificate is for.
_SIGNS = ("basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign", "subjectKeyIdentifier=hash")
_ISSUER = "authorityKeyIdentifier=keyid"
_CONFIGURATION = "[req]\ndistinguished_name = name\n[name]\n"


class Certificates(NamedTuple):
    """Paths of PEM files; `server` and `client` hold key and certificate."""

    authority: Path
    stranger: Path
    server: Path
    client: Path


def make(folder: Path) -> Certificates:
    """All of them, valid for a day."""
    (folder / "openssl.cnf").write_text(_CONFIGURATION)
    authority = _certificate(folder, "authority", "test authority", _SIGNS)
    stranger = _certificate(folder, "stranger", "another authority", _SIGNS)
    signed = ("-CA", str(authority), "-CAkey", str(folder / "authority.key"))
    server = _certificate(folder, "server", HOST, (f"subjectAltName=DNS:{HOST}", _ISSUER), *signed)
    client = _certificate(folder, "client", CLIENT, ("extendedKeyUsage=clientAuth", _ISSUER), *signed)
    return Certificates(authority, stranger, _joined(server), _joined(client))


def _certificate(folder: Path, name: str, subject: str, extensions: Sequence[str], *signed: str) -> Path:
    path = folder / f"{name}.pem"
    added = [word for extension in extensions for word in ("-addext", extension)]
    subprocess.run(
        [
            "openssl", "req", "-x509", "-config", folder / "openssl.cnf", "-newkey", "ec", "-pkeyopt",
            "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1", "-subj", f"/CN={subject}", *added,
            "-keyout", path.with_suffix(".key"), "-out", path, *signed,
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return path


def _joined(path: Path) -> Path:
    """Key and certificate in one file, as Kafka's PEM key stores want it."""
    both = path.with_suffix(".both.pem")
    both.write_text(path.with_suffix(".key").read_text() + path.read_text())
    both.chmod(0o600)
    return both
