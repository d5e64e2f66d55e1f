"""Redis' errors → ours, each with its remedy. An unknown one is a StoreError with the server's own words."""

from __future__ import annotations

import re
from collections.abc import Callable

from redis import exceptions

from cdc.errors import CdcError, ConnectError, LoginError, StoreError, StoreLost

# First word of the server's error → what it means to us. Order of the server's documentation, "Redis error replies".
_REPLIES: dict[str, tuple[Callable[..., CdcError], str]] = {
    "LOST": (StoreLost, "it is refilled by replaying the topics"),
    "NOAUTH": (LoginError, "set [redis] password, or CDC_REDIS__PASSWORD_FILE"),
    "WRONGPASS": (LoginError, "correct [redis] password and the user in the url"),
    "NOPERM": (ConnectError, "give the user what docs/security.md lists: ACL SETUSER <user> …; ACL LOG names the rest"),
    "LOADING": (ConnectError, "wait: the server is still reading its data from disk"),
    "READONLY": (ConnectError, "point [redis] url to the primary; this server is a replica"),
    "MASTERDOWN": (ConnectError, "point [redis] url to the primary; this replica has lost it"),
    "CLUSTERDOWN": (ConnectError, "mend the cluster: CLUSTER INFO on any node says what is missing"),
    "BUSY": (ConnectError, "another client's script blocks the server: SCRIPT KILL ends it"),
    "OOM": (ConnectError, "raise maxmemory, or keep fewer rows with ttl_seconds; nothing is lost, the batch waits"),
    "MISCONF": (ConnectError, "the server cannot write its snapshot: free its disk, see the server's log"),
    "NOREPLICAS": (ConnectError, "bring replicas back, or lower min-replicas-to-write"),
    "MOVED": (StoreError, "use one hash tag for namespace and key templates, and the url of the node that holds it"),
    "CROSSSLOT": (StoreError, "use one hash tag in namespace and in every redis_key template"),
    "NOSTORE": (StoreError, "run `cdc rebuild redis` first"),
}


# What OpenSSL says of a handshake → what it means to us. Waiting does not help with any of these.
_HANDSHAKES = (
    (
        ("Hostname mismatch", "IP address mismatch"),
        "it shows a certificate of another host name",
        "write the name its certificate holds into [redis] url",
    ),
    (("certificate has expired",), "its certificate has expired", "renew the server's certificate"),
    (
        ("CERTIFICATE_VERIFY_FAILED",),
        "it shows a certificate that is not trusted",
        "name its authority by [redis] ca_file",
    ),
    (
        ("CERTIFICATE_REQUIRED", "certificate required"),
        "it wants a certificate of us",
        "name one by [redis] cert_file and key_file",
    ),
)
_IN_SCRIPT = "user executing the script can't"  # Redis 7.0 says NOPERM so; ACL LOG names the command
_KEY = re.compile(r"access the '.*' key", re.DOTALL)


def translate(error: Exception, where: str) -> CdcError:
    """`where` names the server without its password."""
    text = _without_values(str(error))
    for signs, meaning, hint in _HANDSHAKES:
        if any(sign in text for sign in signs):
            return LoginError(f"Redis at {where} cannot be used: {meaning}", hint=hint)
    code = text.split(" ", 1)[0].split(":", 1)[0]
    if isinstance(error, exceptions.OutOfMemoryError) or "command not allowed when used memory" in text:
        code = "OOM"
    elif isinstance(error, exceptions.AuthenticationError):
        code = "WRONGPASS" if code not in _REPLIES else code
    elif isinstance(error, exceptions.BusyLoadingError):
        code = "LOADING"
    elif isinstance(error, exceptions.ReadOnlyError):
        code = "READONLY"
    elif isinstance(error, exceptions.NoPermissionError) or _IN_SCRIPT in text:
        code = "NOPERM"
    if code in _REPLIES:
        kind, hint = _REPLIES[code]
        return kind(f"Redis at {where}: {text}", hint=hint)
    if isinstance(error, (exceptions.ConnectionError, exceptions.TimeoutError, OSError)):
        return ConnectError(
            f"Redis at {where} cannot be reached: {text or 'no reply in time'}",
            hint="start it, or correct [redis] url (rediss:// where the port speaks TLS)",
        )
    return StoreError(f"Redis at {where} refused: {text}", hint="see the server's log; the batch was not taken over")


def _without_values(text: str) -> str:
    """Redis quotes the arguments of a command it does not know, and from 7.2 on the key that a user may not touch."""
    return _KEY.sub("access a key", text.partition(", with args beginning with")[0])
