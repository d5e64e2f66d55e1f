"""A short run of the crash harness: each group of failpoints once, two processes at a time.

The long run is `make crash`. CDC_SEED=n is another run.
"""

from __future__ import annotations

import random
from pathlib import Path

from cdc.embedded import Endpoints
from tests.chance import seeded
from tests.conftest import fresh_database
from tests.crash.cases import CASES, Case
from tests.crash.report import Report
from tests.crash.rig import lay_out, rigged
from tests.crash.trial import begin, run
from tests.crash.workload import Journal

# Groups that die side by side: victim and what its failpoints begin with.
TOGETHER = (
    (("reader", "writer."), ("redis", "redis.")),
    (("reader", "snapshot."), ("faiss", "faiss.")),
    (("reader", "reader.slot-created"),),
    (("resync", "resync."), ("faiss", "consumer.")),
    (("rebuild redis", "rebuild."), ("reader", "reader.before")),
    (("rebuild faiss", ""), ("reader", "reader.after")),
    (("redis", "consumer."), ("reader", "SIGKILL")),
)


def chosen(chance: random.Random) -> list[list[Case]]:
    """One case of each group."""
    return [
        [chance.choice([c for c in CASES if c.victim == victim and c.point.startswith(at)]) for victim, at in groups]
        for groups in TOGETHER
    ]


async def test_killed_anywhere_nothing_is_lost_doubled_or_stale(servers: Endpoints, tmp_path: Path) -> None:
    chance = seeded()
    seed = chance.randrange(1 << 32)
    report = Report(seed)
    with fresh_database(servers.postgres_dsn) as dsn:
        lay_out(dsn)
        async with rigged(servers, dsn, tmp_path, Journal()) as rig:
            await begin(rig, seed)
            for number, cases in enumerate(chosen(chance), 1):  # from 1: no rebuilds besides
                outcome = await run(rig, number, seed, cases)
                report.add(outcome)
                print(f"{' + '.join(case.label for case in cases)}: {outcome.hits}, {outcome.catch_up:.1f} s")
            counted = rig.counted()
    assert sum(row.hits for row in report.rows.values()) >= len(report.rows) - 2, "failpoints are not reached"
    assert all(counted.values()), counted
