"""Who can reach what we listen on: loopback is for this machine alone, anything else is told."""

from __future__ import annotations

import ipaddress

from cdc import log

LOG = log.get(__name__)
REMEDY = "listen on 127.0.0.1 behind a proxy that knows its users, or publish the port on loopback (docs/security.md)"


def is_loopback(host: str) -> bool:
    """True for an address only this machine can connect to."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def announce(what: str, host: str, port: int) -> None:
    """Logs the address, and warns when others can reach it: nothing of ours asks for a password."""
    LOG.info(f"{what} at an address", address=f"{host}:{port}")
    if not is_loopback(host):
        LOG.warning(f"{what} for whoever reaches this address, unprotected", address=f"{host}:{port}", hint=REMEDY)
