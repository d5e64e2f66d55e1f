"""What the benchmark of the peers makes of its runs, and what a peer is told of its lane."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import debezium, go_pq_cdc
from benchmarks.debezium import Debezium
from benchmarks.drain import Drained
from benchmarks.engine import Lane, Ours
from benchmarks.measure import Check, Comparison
from benchmarks.peers import Target, compared
from cdc.config import parse

DSN = "postgresql://us%40er:secret@127.0.0.1:15432/base"


def drained(rate: float, cpu: float, peak: int) -> Drained:
    return Drained(rate, cpu, cpu, peak, startup=1.0, seconds=2.0, records=1, changes=1)


def lane() -> Lane:
    settings = {
        "postgres": {"dsn": DSN, "slot": "mine", "publication": "published", "tables": ["public.notes"]},
        "kafka": {"bootstrap": "127.0.0.1:19092", "prefix": "bench"},
    }
    return Lane(settings, parse(settings), "public.notes")


def test_targets_are_ratios_of_the_means() -> None:
    ours, peers = [drained(80, 3, 10), drained(120, 3, 10)], [drained(20, 10, 30), drained(30, 20, 30)]
    speed, cpu, memory = compared(Ours("pgoutput"), ours, Target(Debezium(), 4, 1 / 3, 1 / 4), peers)
    assert isinstance(speed, Comparison)
    assert (speed.ratio, speed.noise) == pytest.approx((4, 0.4))
    assert speed.details == pytest.approx({"noise_of_ours": 0.4, "noise_of_the_peer": 0.4})
    assert isinstance(cpu, Check)
    assert cpu.value == pytest.approx(0.2)
    assert not cpu.missed(quick=False)
    assert isinstance(memory, Check)
    assert memory.value == pytest.approx(1 / 3)
    assert memory.missed(quick=False)


def test_debezium_reads_the_lane_and_writes_into_its_topic(tmp_path: Path) -> None:
    connector, worker = debezium.connector(lane()), debezium.worker(lane(), tmp_path)
    assert connector["database.user"] == "us@er"
    assert connector["database.port"] == "15432"
    assert connector["slot.name"] == "mine"
    assert connector["publication.name"] == "published"
    assert lane().topics == (f"{connector['topic.prefix']}.{connector['table.include.list']}",)
    assert worker["bootstrap.servers"] == "127.0.0.1:19092"


def test_properties_are_lines(tmp_path: Path) -> None:
    debezium.write(tmp_path / "file", {"acks": "all", "linger.ms": "5"})
    assert (tmp_path / "file").read_text() == "acks=all\nlinger.ms=5\n"


def test_go_pq_cdc_gets_the_same_lane() -> None:
    given = go_pq_cdc.settings(lane())
    assert given["host"] == "127.0.0.1:15432"
    assert given["topic"] == "bench.public.notes"
    assert given["slot"] == "mine"


def test_why_go_failed_is_one_line_without_an_address() -> None:
    said = "go: downloading some\nmain.go:12:2: some@v1.0.3: reading https://where.ever/it: 403 Forbidden\nmore"
    assert go_pq_cdc.reason(said) == "main.go:12:2: some@v1.0.3: 403 Forbidden"
    assert go_pq_cdc.reason("") == "it said nothing"
