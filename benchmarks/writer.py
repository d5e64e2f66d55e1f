"""`python -m benchmarks.writer`: rows at a steady rate, whatever becomes of them; a process of its own.

Each transaction has its time, and moves its rows from `public.notes_staged` to `public.notes`. One that is late does
not move the times of those behind it, so that a slow system is not spared (no coordinated omission). The clock of a
transaction starts when PostgreSQL has confirmed the commit: what PostgreSQL itself takes is nobody's merit or fault.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass

import psycopg

from benchmarks.children import Child

TRANSACTIONS = 100  # a second
WARM_SECONDS = 3  # first commits: connections, code and caches come to life; not counted
MOVE = "INSERT INTO public.notes SELECT * FROM public.notes_staged WHERE id > %s AND id <= %s"


@dataclass(frozen=True)
class Schedule:
    """`rate` rows a second for `seconds`, after those of the warm-up, with the ids that follow `first`."""

    dsn: str
    rate: int
    seconds: int
    first: int = 0

    @property
    def size(self) -> int:
        """Rows a transaction."""
        return self.rate // TRANSACTIONS

    @property
    def rows(self) -> int:
        """In all."""
        return self.size * TRANSACTIONS * (self.seconds + WARM_SECONDS)

    @property
    def warm(self) -> int:
        """Of them, those that are not counted."""
        return self.size * TRANSACTIONS * WARM_SECONDS

    @property
    def watched(self) -> range:
        """Ids of the transactions' last rows."""
        return range(self.first + self.size, self.first + self.rows + 1, self.size)

    def start(self) -> Child:
        """The process; its first line is the time of the first transaction (monotonic seconds), its second what
        `write` returns."""
        return Child([sys.executable, "-m", "benchmarks.writer", json.dumps(asdict(self))])


def write(schedule: Schedule) -> dict[str, object]:
    """`commits`: monotonic seconds of each transaction; `behind`: the most one came late after the warm-up."""
    commits: list[float] = []
    behind = 0.0
    with psycopg.connect(schedule.dsn, autocommit=True, prepare_threshold=0) as connection:
        connection.execute(MOVE, [0, 0])
        started = time.monotonic()
        print(json.dumps(started), flush=True)
        for number, last in enumerate(schedule.watched):
            due = started + number / TRANSACTIONS
            time.sleep(max(0.0, due - time.monotonic()))
            connection.execute(MOVE, [last - schedule.size, last])
            commits.append(time.monotonic())
            if last > schedule.first + schedule.warm:
                behind = max(behind, commits[-1] - due)
    return {"commits": commits, "behind": behind}


if __name__ == "__main__":
    print(json.dumps(write(Schedule(**json.loads(sys.argv[1])))), flush=True)
