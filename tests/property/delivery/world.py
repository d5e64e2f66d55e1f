"""The whole model: a schedule of bytes is decoded into steps; each is one thing that happens to one of the parts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from uuid import UUID

from cdc.position import MAX_ORDINAL, Position
from tests.property.delivery.consuming import Consumer, Index, Server
from tests.property.delivery.reading import Reading
from tests.property.delivery.source import KEYS, NAMES, TOPICS, Name, Source, key_bytes
from tests.property.delivery.topics import PLACES, Place, Topics, position_of

HEARTBEAT = b'{"kind":"heartbeat"}'
PATIENCE = 5000  # rounds in which everything has to have settled


class Tape:
    """The schedule, read byte by byte; zeros follow its end."""

    def __init__(self, schedule: bytes) -> None:
        self._bytes, self._at = schedule, 0

    def __bool__(self) -> bool:
        return self._at < len(self._bytes)

    def byte(self) -> int:
        """The next one."""
        self._at += 1
        return self._bytes[self._at - 1] if self._at <= len(self._bytes) else 0

    def share(self) -> float:
        """0 to below 1."""
        return self.byte() / 256


class World:
    """Source, reader, topics and two consumers. `steps` counts those that did something, by name."""

    def __init__(self, *, repeats: bool = False) -> None:
        self.steps: Counter[str] = Counter()
        self._requests = 0
        self.source = Source()
        rows = ((6, name, key, 0) for name in NAMES for key in range(0, KEYS, 2))
        self.source.commit(rows, hide=False)  # there before the slot
        self.topics = Topics(repeats=repeats)
        self.reading = Reading(self.source, self.topics)
        self.consumers = [Consumer(store, self.topics, self.reading) for store in (Server(), Index())]

    def run(self, schedule: bytes) -> None:
        """All of a schedule, then everything is drained and compared."""
        tape = Tape(schedule)
        self._count("start", self.reading.start())
        while tape:
            self._step(tape)
        self.settle()

    def _step(self, tape: Tape) -> None:
        kind = tape.byte()
        if kind == 0:
            return  # what a schedule shrinks to
        name, act = STEPS[(kind - 1) % len(STEPS)]
        self._count(name, act(self, tape))
        assert self.reading.slot <= self.reading._progress().end_lsn, "the slot was told more than progress says"

    def _count(self, name: str, done: bool) -> None:
        self.steps[name] += done

    # source

    def commit(self, tape: Tape) -> bool:
        """A transaction of a few changes."""
        size = tape.byte()
        return self.source.commit(self._orders(tape, 1 + size % 4 + (8 if size > 240 else 0)), hide=size % 4 == 1)

    def _orders(self, tape: Tape, number: int) -> Iterator[tuple[int, Name, int, int]]:
        for _ in range(number):
            kind, key = tape.byte(), tape.byte()
            other = (key >> 4) % KEYS
            yield (0 if kind > 250 else 1 + kind % 10), NAMES[kind % 4 == 3], key % KEYS, other

    def heartbeat(self, tape: Tape) -> bool:
        """The source's clock."""
        self.source.message(HEARTBEAT)
        return True

    def request(self, tape: Tape) -> bool:
        """Somebody asks for a snapshot."""
        schema, table = NAMES[tape.byte() % 2]
        self.source.message(b'{"kind":"snapshot","table":["%b","%b"]}' % (schema.encode(), table.encode()))
        return True

    def ask(self, tape: Tape) -> bool:
        """Somebody asks for some keys, whether they have rows or not."""
        name = NAMES[tape.byte() % 2]
        keys = {tape.byte() % KEYS for _ in range(1 + tape.byte() % 6)}
        self._requests += 1
        content = {
            "kind": "backfill", "id": str(UUID(int=self._requests)), "table": name, "keys": [[str(k)] for k in keys],
        }  # fmt: skip
        self.source.message(json.dumps(content).encode())
        position = Position(self.source.epoch, self.source.log[-1].lsn, MAX_ORDINAL)
        self.reading.asked.append((position.encode(), name, keys))
        return True

    # reader

    def start(self, tape: Tape) -> bool:
        return self.reading.start()

    def feed(self, tape: Tape) -> bool:
        return self.reading.feed(1 + tape.byte() % 24)

    def copy(self, tape: Tape) -> bool:
        which = tape.byte()
        run = self.reading.run
        if run is None or not run.copy(which, self.source, cut=which % 5 == 0):
            return False
        if which & 8:  # what follows a step mostly follows it at once
            run.copy(which, self.source, cut=False)
        return True

    def take(self, tape: Tape) -> bool:
        return self.reading.take()

    def write(self, tape: Tape) -> bool:
        return self.reading.write()

    def decide(self, tape: Tape) -> bool:
        return self.reading.decide("commit")

    def fail(self, tape: Tape) -> bool:
        return self.reading.decide("doubt" if tape.byte() % 2 else "lost")

    def kill(self, tape: Tape) -> bool:
        return self.reading.crash()

    def go_back(self, tape: Tape) -> bool:
        return self.reading.go_back(tape.share())

    def resync(self, tape: Tape) -> bool:
        return tape.byte() < 64 and self.reading.resync()

    # topics

    def compact(self, tape: Tape) -> bool:
        """Any prefix; a tombstone goes once no store is before it."""
        place = PLACES[tape.byte() % len(PLACES)]
        log = self.topics.logs[place]
        oldest = min(min(c.store.offsets().get(place, 0), c.at[place]) for c in self.consumers)
        log.compact(int(log.stable * tape.share()), oldest)
        return True

    # stores

    def _consumer(self, tape: Tape) -> tuple[Consumer, int]:
        value = tape.byte()
        return self.consumers[value % 2], value >> 1

    def deliver(self, tape: Tape) -> bool:
        consumer, order = self._consumer(tape)
        return consumer.deliver(_some(order), 1 + order % 16)

    def die(self, tape: Tape) -> bool:
        """Between two batches of a poll, or before the first."""
        consumer, order = self._consumer(tape)
        return consumer.deliver(PLACES, 12, die_after=order % 3)

    def rewind(self, tape: Tape) -> bool:
        consumer, place = self._consumer(tape)
        return consumer.rewind(PLACES[place % len(PLACES)], tape.share())

    def flush(self, tape: Tape) -> bool:
        self._consumer(tape)[0].flush()
        return True

    def prune(self, tape: Tape) -> bool:
        return self.consumers[1].prune()

    def hear(self, tape: Tape) -> bool:
        consumer, number = self._consumer(tape)
        return consumer.hear(1 + number % 4)

    def rebuild(self, tape: Tape) -> bool:
        consumer, value = self._consumer(tape)
        if value < 96:
            return False
        consumer.rebuild()
        return True

    # the end

    def settle(self) -> None:
        """Nothing fails any more: source, topics and stores become equal, and the stores fresh."""
        self.source.hidden = None
        self.reading.start()
        self._drain()
        self.source.message(HEARTBEAT)
        self._drain()
        assert self.reading.run is not None
        for consumer in self.consumers:
            while consumer.hear(100):
                pass
            while consumer.deliver(PLACES, 50):
                self._count("deliver", True)
            self._equal(consumer)

    def _drain(self) -> None:
        reading = self.reading
        for _ in range(PATIENCE):
            assert reading.run is not None
            done = [reading.feed(50), reading.take(), reading.write(), reading.decide("commit")]
            done += [reading.run.copy(which, self.source, cut=False) for which in (1, 2)]
            self._count("drain", any(done))
            run = reading.run
            if not any(done) and run.at == len(self.source.log) and not run.jobs and not run.backfills:
                return
        raise AssertionError("the reader never comes to an end")

    def _equal(self, consumer: Consumer) -> None:
        for name in consumer.store.names:
            rows = self.source.rows[name]
            assert consumer.store.rows(name) == rows, "a store differs from the source"
            topic = self.topics.compacted(TOPICS[name])
            assert topic.keys() == set(map(key_bytes, rows)), "the topic differs from the source"
            held = consumer.store.versions(name, list(topic))
            assert [version and version.position for version in held] == [*map(position_of, topic.values())]
            for position, asked, keys in self.reading.asked:
                again = [topic[key_bytes(key)] for key in keys & rows.keys()] if asked == name else []
                assert all(position_of(record) > position for record in again), "a key asked for was not sent again"
        freshness = consumer.freshness.position
        last = self.source.log[-1].lsn
        assert int(freshness[8:24] or b"0", 16) == last, "a store that holds everything does not say so"


def _some(order: int) -> list[Place]:
    """A few of the partitions, in any order."""
    turned = PLACES[order % 5 :] + PLACES[: order % 5]
    return turned[: 1 + order % 3] if order & 8 else turned[::-1]


_WEIGHTS: dict[Callable[[World, Tape], bool], int] = {
    World.commit: 36, World.heartbeat: 10, World.request: 1, World.ask: 4, World.start: 8, World.feed: 46,
    World.copy: 24, World.take: 20, World.write: 20, World.decide: 24, World.fail: 3, World.kill: 2, World.go_back: 2,
    World.resync: 1, World.compact: 5, World.deliver: 33, World.die: 3, World.rewind: 2, World.flush: 4, World.prune: 2,
    World.hear: 8, World.rebuild: 1,
}  # fmt: skip
STEPS = [(act.__name__, act) for act, weight in _WEIGHTS.items() for _ in range(weight)]
