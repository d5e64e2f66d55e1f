"""Turns what aiokafka raises, or only logs, into one sentence of ours with its remedy.

aiokafka tries every bootstrap server, logs why each refused, and raises the same "unable to bootstrap" whatever the
reason was; so the reason is asked for again, by one connection of our own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from ssl import SSLCertVerificationError, SSLError
from typing import Any

from aiokafka import errors as kafka_errors
from aiokafka.conn import collect_hosts, create_conn

from cdc.config import Kafka
from cdc.errors import CdcError, ConnectError, FencedError, LoginError, PreconditionError

CONNECT_SECONDS = 10.0  # to reach a broker, log in and get an answer; a healthy cluster takes below one

_FENCED = (kafka_errors.ProducerFenced, kafka_errors.InvalidProducerEpoch)
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


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it; aiokafka wraps the telling one."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


def find(error: BaseException, kinds: tuple[type[BaseException], ...]) -> BaseException | None:
    """The first in the chain that is of one of the kinds."""
    return next((e for e in chain(error) if isinstance(e, kinds)), None)


def typed(error: BaseException, kafka: Kafka, doing: str) -> CdcError:
    """Our error for one of aiokafka's; `doing` completes "Kafka at … failed while …"."""
    where = f"Kafka at {kafka.bootstrap}"
    if find(error, _FENCED):
        return FencedError(
            f"{where}: another writer with the same source name took over while {doing}",
            hint="run one reader a source; stop this one, or give it another source_name and prefix",
        )
    if denied := find(error, _DENIED):
        return ConnectError(
            f"{where} does not allow {kafka.username or 'this client'} to go on {doing}: {type(denied).__name__}",
            hint=f"grant read, write, create and describe on topics {kafka.prefix}.*, and write on transactional ids",
        )
    if find(error, (kafka_errors.InvalidTransactionTimeout,)):
        return PreconditionError(
            f"{where} refuses a transaction time-out of {kafka.transaction_timeout_seconds:g} s",
            hint="lower [kafka] transaction_timeout_seconds or raise the broker's transaction.max.timeout.ms",
        )
    if find(error, (TimeoutError, kafka_errors.KafkaTimeoutError)):
        return ConnectError(
            f"{where} did not answer in time while {doing}",
            hint="look whether all its brokers are up and min.insync.replicas are in sync; nothing is lost meanwhile",
        )
    cause = list(chain(error))[-1]
    return ConnectError(
        f"{where} failed while {doing}: {type(cause).__name__}", hint="look into the broker's log; it is tried again"
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
    if find(error, (SSLCertVerificationError,)):
        return ConnectError(
            f"{where} shows a certificate that is not trusted", hint="name its authority by [kafka] ca_file"
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


@asynccontextmanager
async def bounded(kafka: Kafka, doing: str, seconds: float = CONNECT_SECONDS) -> AsyncIterator[None]:
    """Everything inside takes at most `seconds`, and fails with an error of ours."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except kafka_errors.KafkaConnectionError as error:
        raise await explain(kafka) from error
    except (kafka_errors.KafkaError, OSError, TimeoutError) as error:
        raise typed(error, kafka, doing) from error


async def start(client: Any, kafka: Kafka, doing: str) -> None:
    """Starts an aiokafka client within the bound; a client that fails to start has to be stopped by the caller."""
    async with bounded(kafka, doing):
        await client.start()
