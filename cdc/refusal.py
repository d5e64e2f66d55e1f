"""Why Kafka does not take us: one sentence with its remedy, for both halves.

aiokafka tries every bootstrap server, logs why each refused, and raises the same "unable to bootstrap" whatever the
reason was; so the reason is asked for again, by one connection of our own. What waiting cannot mend (a password, a
certificate) is a LoginError.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from ssl import SSLCertVerificationError, SSLError

from aiokafka import errors as kafka_errors
from aiokafka.conn import collect_hosts, create_conn

from cdc.config import Kafka
from cdc.errors import ConnectError, LoginError

CONNECT_SECONDS = 10.0  # to reach a broker, log in and get an answer; a healthy cluster takes below one

_DENIED = (
    kafka_errors.TopicAuthorizationFailedError,
    kafka_errors.TransactionalIdAuthorizationFailed,
    kafka_errors.ClusterAuthorizationFailedError,
    kafka_errors.GroupAuthorizationFailedError,
)
_LOGIN = (
    kafka_errors.AuthenticationFailedError,
    kafka_errors.SaslAuthenticationFailed,
)
_PROTOCOL = (
    SSLError,
    ConnectionResetError,
    EOFError,
    kafka_errors.KafkaConnectionError,
    kafka_errors.IllegalSaslStateError,
)
_MECHANISM = (kafka_errors.AuthenticationMethodNotSupported, kafka_errors.UnsupportedSaslMechanismError)
_EXPIRED, _NAMES = 10, (62, 64)  # X509_V_ERR_…: certificate expired, host name and IP address mismatch (OpenSSL)
_CLIENT = ("CERTIFICATE_REQUIRED", "BAD_CERTIFICATE", "UNKNOWN_CA", "HANDSHAKE_FAILURE", "CERTIFICATE_UNKNOWN")


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it; aiokafka wraps the telling one."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


def find(error: BaseException, kinds: tuple[type[BaseException], ...]) -> BaseException | None:
    """The first in the chain that is of one of the kinds."""
    return next((e for e in chain(error) if isinstance(e, kinds)), None)


def denied(error: BaseException, kafka: Kafka, doing: str) -> ConnectError | None:
    """The sentence when an ACL is missing, None for any other error."""
    found = find(error, _DENIED)
    if found is None:
        return None
    return ConnectError(
        f"Kafka at {kafka.bootstrap} does not allow {kafka.username or 'this client'} to go on {doing}: "
        f"{type(found).__name__}",
        hint=f"grant what docs/security.md lists for prefix {kafka.prefix} (kafka-acls)",
    )


async def explain(kafka: Kafka) -> ConnectError:
    """Why no bootstrap server takes us, found out by one connection to the first of them."""
    options = kafka.client_options()
    host, port, _family = collect_hosts(options.pop("bootstrap_servers"))[0]
    where = f"Kafka at {kafka.bootstrap}"
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            connection = await create_conn(host, port, request_timeout_ms=int(CONNECT_SECONDS * 1000), **options)
    except (OSError, kafka_errors.KafkaError, TimeoutError) as error:
        return _refusal(error, kafka, where)
    await connection.close()
    return ConnectError(
        f"{where} takes connections and does not answer as Kafka does",
        hint="look into the broker's log, and whether [kafka] security_protocol is the listener's",
    )


def _refusal(error: BaseException, kafka: Kafka, where: str) -> ConnectError:
    if find(error, _LOGIN):
        return LoginError(
            f"{where} refuses the user name or password of {kafka.username}",
            hint="correct [kafka] username and password (CDC_KAFKA__PASSWORD_FILE)",
        )
    if find(error, _MECHANISM):
        return ConnectError(
            f"{where} does not offer {kafka.sasl_mechanism}", hint="set [kafka] sasl_mechanism to one it offers"
        )
    if isinstance(untrusted := find(error, (SSLCertVerificationError,)), SSLCertVerificationError):
        return _untrusted(untrusted.verify_code, where)
    if isinstance(failed := find(error, (SSLError,)), SSLError) and any(s in str(failed) for s in _CLIENT):
        return LoginError(
            f"{where} wants a certificate of us, and does not take {kafka.cert_file or 'none'}",
            hint="name one that its ssl.truststore knows by [kafka] cert_file and key_file",
        )
    if find(error, (TimeoutError,)):
        return ConnectError(
            f"{where} does not answer within {CONNECT_SECONDS:g} s",
            hint="look whether it hangs, whether a firewall is between, and what [kafka] security_protocol it speaks",
        )
    if find(error, _PROTOCOL):
        return ConnectError(
            f"{where} does not answer a {kafka.security_protocol} client",
            hint="set [kafka] security_protocol to what that port speaks",
        )
    detail = getattr(error, "strerror", None) or type(error).__name__
    return ConnectError(
        f"{where} cannot be reached: {detail}", hint="start it, or correct [kafka] bootstrap (host:port, …)"
    )


def _untrusted(code: int, where: str) -> LoginError:
    if code in _NAMES:
        return LoginError(
            f"{where} shows a certificate of another host name",
            hint="write the name its certificate holds into [kafka] bootstrap and the brokers' advertised.listeners",
        )
    if code == _EXPIRED:
        return LoginError(f"{where} shows a certificate that has expired", hint="renew the broker's certificate")
    return LoginError(f"{where} shows a certificate that is not trusted", hint="name its authority by [kafka] ca_file")
