"""The three servers behind proxies: what the processes under test see of them can be broken at any time.

PostgreSQL and Redis are the session's. Kafka is one of its own, which tells its clients to go on at the proxy: else
they would leave it after the first answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cdc.config import Config
from cdc.embedded import Endpoints, Servers
from tests.crash.proxy import HOST, Proxy


@dataclass(frozen=True, slots=True)
class Network:
    """`direct` are the servers themselves, `endpoints` the same through the proxies."""

    postgres: Proxy
    kafka: Proxy
    redis: Proxy
    direct: Endpoints
    endpoints: Endpoints
    broker: Servers  # Kafka itself, to be killed and started again

    def heal(self) -> None:
        """All three."""
        for proxy in (self.postgres, self.kafka, self.redis):
            proxy.heal()

    def reach(self, dsn: str) -> str:
        """A database's dsn by way of the proxy."""
        return make_conninfo(dsn, host=HOST, port=self.postgres.port)

    def beside(self, config: Config) -> Config:
        """The same config around the proxies: for the test's own eyes and hands while the network is broken."""
        own = conninfo_to_dict(self.direct.postgres_dsn)
        dsn = make_conninfo(config.postgres.dsn, host=str(own["host"]), port=str(own["port"]))
        url = urlsplit(config.redis.url)._replace(netloc=urlsplit(self.direct.redis_url).netloc).geturl()
        return config.model_copy(
            update={
                "postgres": config.postgres.model_copy(update={"dsn": dsn}),
                "kafka": config.kafka.model_copy(update={"bootstrap": self.direct.kafka_bootstrap}),
                "redis": config.redis.model_copy(update={"url": url}),
            }
        )


@contextmanager
def proxied(servers: Endpoints, folder: Path) -> Iterator[Network]:
    """Starts a Kafka in `folder` and the proxies."""
    own = conninfo_to_dict(servers.postgres_dsn)
    redis = urlsplit(servers.redis_url)
    assert redis.hostname
    assert redis.port
    with ExitStack() as stack:
        postgres = stack.enter_context(Proxy(str(own["host"]), int(str(own["port"]))))
        memory = stack.enter_context(Proxy(redis.hostname, redis.port))
        kafka = stack.enter_context(Proxy(HOST, 0))
        broker = Servers(folder / "kafka", only=("kafka",), kafka_advertised=kafka.address)
        stack.callback(broker.erase)
        started = broker.start()
        kafka.target = (HOST, int(started.kafka_outside.rpartition(":")[2]))
        direct = replace(servers, kafka_bootstrap=started.kafka_bootstrap)
        login = redis.netloc.rpartition("@")[0]
        through = replace(
            direct,
            postgres_dsn=make_conninfo(servers.postgres_dsn, host=HOST, port=postgres.port),
            kafka_bootstrap=kafka.address,
            redis_url=redis._replace(netloc=f"{login}@{memory.address}" if login else memory.address).geturl(),
        )
        yield Network(postgres, kafka, memory, direct, through, broker)
