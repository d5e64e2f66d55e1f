"""Masks, applied while a value is encoded, so that the plain value never leaves the reader.

`hash` is HMAC-SHA-256 (RFC 2104) under the config's mask_secret of PostgreSQL's text of the value, in hex: equal values
stay equal, so that joins and keys work, and nobody without the secret can try values. `redact` is a constant. NULL
stays null; `drop` takes the column out of its table (see layout.py).
"""

from __future__ import annotations

import hmac

from cdc.config import Config, Mask
from cdc.errors import ConfigError
from cdc.source.events import Codec

REDACTED = b'"***"'


def redact(_: bytes) -> bytes:
    """The constant."""
    return REDACTED


def hash_codec(secret: bytes) -> Codec:
    """Codec that yields the HMAC in hex as a JSON string."""

    def encode(text: bytes) -> bytes:
        return b'"%b"' % hmac.digest(secret, text, "sha256").hex().encode()

    return encode


def masked(mask: Mask | None, plain: Codec, config: Config) -> Codec:
    """The codec of a column under its mask; raises ConfigError when the secret is missing."""
    if mask is None:
        return plain
    if mask == "redact":
        return redact
    if config.mask_secret is None:
        raise ConfigError("a column is masked by hash but mask_secret is not set", hint="set mask_secret in the config")
    return hash_codec(config.mask_secret.get_secret_value().encode())
