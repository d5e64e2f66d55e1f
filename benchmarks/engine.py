"""What the benchmarks compare: programs that carry a table's changes from PostgreSQL into Kafka.

Each gets a lane of its own: a slot, a publication and a topic, made by `prepare` before the first row is written, the
topic with the same settings for all. Then everything that commits afterwards waits in the log until a program runs on
that lane, and several programs (or one several times) can drain the very same stretch of the log.

What a program did is seen in its topic (`benchmarks.topic` with `lane.config` and `lane.table`), never asked from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import psycopg

from benchmarks.bench import Bench
from benchmarks.children import Child
from cdc.config import Config, parse
from cdc.embedded import programs
from cdc.errors import PreconditionError
from cdc.kafka.topics import ensure_topics
from cdc.source.slot import create_slot, ensure_publication


@dataclass(frozen=True)
class Lane:
    """One program's way from a table into Kafka; `config` says it in our words, `settings` is what that was made of."""

    settings: Mapping[str, Any]
    config: Config
    table: str

    @property
    def slot(self) -> str:
        """Its own, at the log's end of when the lane was made."""
        return self.config.postgres.slot

    @property
    def topics(self) -> tuple[str, ...]:
        """Where the table's rows go, one record a change (a delete: see `Engine.delete_records`)."""
        return (self.config.kafka.table_topic(*self.table.split(".")),)

    @property
    def partitions(self) -> int:
        """Of the topic."""
        return self.config.kafka.partitions

    def consumer_options(self) -> dict[str, Any]:
        """Keyword arguments of an aiokafka consumer that sees what is committed."""
        return {**self.config.kafka.client_options(), "isolation_level": "read_committed"}


@dataclass(frozen=True)
class Running:
    """A program at work on its lane."""

    lane: Lane
    child: Child

    def look(self) -> None:
        """Raises ChildFailed when it ended in error."""
        self.child.look()

    def cpu_seconds(self) -> float:
        """User and system time so far, of it and all it started."""
        return self.child.cpu_seconds()

    def peak_bytes(self) -> int:
        """The most memory that was resident, of it and all it started."""
        return self.child.peak_bytes()


class Engine(Protocol):
    """A program under test. Its keys are JSON objects of the primary key, as ours."""

    @property
    def name(self) -> str:
        """As tables show it."""

    @property
    def plugin(self) -> str:
        """The slot's."""

    @property
    def delivery(self) -> str:
        """ "exactly once" or "at least once", as it is run here."""

    @property
    def delete_records(self) -> int:
        """Records that a delete yields in the topic."""

    def obtain(self) -> None:
        """Fetches and builds it, once. Raises PreconditionError: why it cannot run here."""

    def running(self, bench: Bench, lane: Lane) -> AbstractContextManager[Running]:
        """Starts it, and ends it by SIGTERM. It takes everything from the lane's slot on, without a snapshot.

        Returns at once: wait for it by `wait_for_slot(connection, lane.slot, running.child)`.
        """


async def prepare(
    bench: Bench, connection: psycopg.Connection, engine: Engine, dsn: str, table: str, **sections: dict[str, Any]
) -> Lane:
    """A lane for an engine: no row that commits afterwards is lost to it. `sections` go over the settings."""
    postgres = {"plugin": engine.plugin, "snapshot": "never"} | sections.pop("postgres", {})
    settings = bench.settings(dsn, table, postgres=postgres, **sections)
    config = parse(settings)
    schema, _, name = table.partition(".")
    await ensure_topics(config.kafka, [(schema, name)])
    ensure_publication(connection, config.postgres, [(schema, name)])
    create_slot(connection, config.postgres)
    return Lane(settings, config, table)


@dataclass(frozen=True)
class Ours:
    """memory-cdc's reader with its defaults, and one of the two plugins."""

    plugin: str
    delivery: str = "exactly once"
    delete_records: int = 2  # the event and the tombstone

    @property
    def name(self) -> str:
        """As tables show it."""
        return f"memory-cdc, {self.plugin}"

    def obtain(self) -> None:
        """Only wal2json may be missing."""
        if self.plugin == "wal2json" and not programs.postgres("auto").wal2json:
            raise PreconditionError("this PostgreSQL has no wal2json", hint="pgoutput is measured")

    @contextmanager
    def running(self, bench: Bench, lane: Lane) -> Iterator[Running]:
        """The role `reader`."""
        with bench.start("reader", dict(lane.settings)) as child:
            yield Running(lane, child)


def unusable(engine: Engine) -> str | None:
    """Why it cannot run here; None when it can."""
    try:
        engine.obtain()
    except PreconditionError as error:
        return str(error)
    return None
