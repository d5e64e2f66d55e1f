"""What sections of the configuration share: frozen, without unknown keys, and the PEM files of a TLS connection."""

from __future__ import annotations

from pathlib import Path
from ssl import SSLContext, SSLError, create_default_context
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from cdc.errors import ConfigError

FILES = ("ca_file", "cert_file", "key_file")


class Section(BaseModel):
    """Frozen, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Certificates(Section):
    """PEM files of a TLS connection: whom we trust (`ca_file`; None: the system's authorities), and, where the server
    wants to know us by a certificate, ours (`cert_file`, with `key_file` unless the key stands in it too)."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    @model_validator(mode="after")
    def _present(self) -> Self:
        for name in FILES:
            path: Path | None = getattr(self, name)
            if path is not None and not path.is_file():
                raise ValueError(f"there is no {name} {path}")
        if self.key_file is not None and self.cert_file is None:
            raise ValueError("key_file needs cert_file, the certificate it belongs to")
        return self

    def tls(self, section: str) -> SSLContext:
        """A client's context that verifies the server's chain and host name. Raises ConfigError."""
        try:
            context = create_default_context(cafile=self.ca_file)
            if self.cert_file is not None:
                context.load_cert_chain(self.cert_file, self.key_file, password=_no_passphrase)
        except (SSLError, OSError) as error:
            raise ConfigError(
                f"[{section}] ca_file, cert_file or key_file is not what it has to be: {error.strerror or error}",
                hint="give PEM files: the authority's certificates, our certificate, and its key without a passphrase",
            ) from error
        return context


def _no_passphrase() -> str:
    """For a locked key: OpenSSL would ask at the terminal."""
    return ""
