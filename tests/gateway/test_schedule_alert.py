"""The scheduler that started and never fired: rebuilt as it happened, seen by an alert, mended as its runbook says."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cdc.embedded.folder import HOST, Folder, free_port
from tests.command_line import CommandLine
from tests.gateway_rig import execute, running
from tests.prometheus import Prometheus
from tests.waiting import until

PROGRAM = shutil.which("prometheus")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no prometheus; `make setup` installs it")

NEVER_FIRES = """
from functools import partialmethod
from apscheduler.schedulers.asyncio import AsyncIOScheduler
AsyncIOScheduler.start = partialmethod(AsyncIOScheduler.start, paused=True)
from cdc.cli import main
main()
"""
OVERDUE = "UPDATE cdc.schedules SET first_seen = now() - interval '3 days'"
MISSED = ("CdcScheduleMissed", "prune")


class StuckScheduler(CommandLine):
    """The same command, whose scheduler starts, says that it runs, and wakes nobody."""

    def __init__(self, folder: Path, data: dict[str, Any]) -> None:
        super().__init__(folder, data)
        self._prefix = [sys.executable, "-c", NEVER_FIRES, "--config", str(self.path)]


@pytest.fixture
def prometheus(data: dict[str, Any], tmp_path: Path) -> Iterator[Prometheus]:
    """It scrapes the gateway; nothing else runs."""
    targets = dict.fromkeys(("cdc-reader", "cdc-redis", "cdc-faiss"), f"{HOST}:{free_port(set())}")
    targets["cdc-gateway"] = f"{HOST}:{data['metrics']['gateway_port']}"
    folder = Folder(tmp_path / "prometheus")
    folder.lock()
    assert PROGRAM is not None
    server = Prometheus(folder, PROGRAM, targets)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        folder.unlock()


def missed(prometheus: Prometheus) -> set[tuple[str, str]]:
    """Schedules that are complained of; the gateway runs, so that nothing else of it may be."""
    found = {(a["labels"]["alertname"], a["labels"].get("schedule", "")) for a in prometheus.alerts("firing")}
    return {one for one in found if one[0].startswith("CdcSchedule")}


async def test_a_scheduler_that_never_fires_pages(data: dict[str, Any], tmp_path: Path, prometheus: Prometheus) -> None:
    data["schedule"] = {"verify": {"enabled": False}}
    stuck = StuckScheduler(tmp_path, data)
    async with running(stuck, data) as client:

        async def registered() -> bool:
            return [one["name"] for one in (await client.get("/schedules")).json()] == ["prune"]

        await until(registered, "the schedule is known")
        execute(data, OVERDUE)
        await until(lambda: missed(prometheus) == {MISSED}, "the alert of a schedule that is not run")
        [alert] = [a for a in prometheus.alerts("firing") if a["labels"]["alertname"] == MISSED[0]]
        assert alert["annotations"]["runbook_url"] == "docs/runbooks.md#schedule-missed"
        assert (await client.get("/health")).status_code == 200, "it would look well but for the alert"
        [shown] = (await client.get("/schedules")).json()
        assert (shown["overdue"], shown["last_run"], shown["error"]) == (True, None, None)
        assert execute(data, "SELECT count(*) FROM cdc.jobs") == [(0,)]
    async with running(CommandLine(tmp_path, data), data) as client:  # the runbook: end it and start it again
        await until(lambda: not missed(prometheus), "the alert's end")
        [shown] = (await client.get("/schedules")).json()
        assert shown["last_success"]
        assert not shown["overdue"]
