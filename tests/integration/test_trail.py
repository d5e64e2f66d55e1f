"""One transaction's way through the processes: in all their logs by its position, and as one trace of spans."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from cdc.config import parse
from cdc.embedded import Endpoints
from cdc.errors import ConfigError
from cdc.tracing import Spans
from cdc.trail import Trail
from tests.command_line import CommandLine, free_ports
from tests.pipeline import MEMORIES, settings
from tests.waiting import until

SECRET = "a sentence that no log may show"
MORE = "INSERT INTO memories (id, embedding) SELECT n, ARRAY[n, 1] FROM generate_series(3, 9) n"
PROCESSES = (("reader",), ("consume", "redis"), ("consume", "faiss"))
OFF = {"postgres": {"dsn": "dbname=x"}, "kafka": {"bootstrap": "x"}}


class Collector(ThreadingHTTPServer):
    """A receiver of OTLP/HTTP: `spans` by name."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[tuple[str, Any]] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/traces"

    def of(self, transaction: str) -> dict[str, Any]:
        """The transaction's spans by name."""
        return {s.name: s for s in self.spans if _attributes(s).get("cdc.transaction") == transaction}  # type: ignore[attr-defined]


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                self.server.spans += scope.spans
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_words: object) -> None:
        """Nothing: what came is looked at."""


def _attributes(span: Any) -> dict[str, Any]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def lines(log: Path, event: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [line for line in found if line["event"] == event]


async def test_a_transaction_is_found_everywhere(
    servers: Endpoints, dsn: str, tmp_path: Path, collector: Collector
) -> None:
    data = settings(servers, dsn, tmp_path, **free_ports())
    data["tracing"] = {"endpoint": collector.endpoint, "sample": 1.0}
    data["tables"] = {"public.memories": {"vector": "embedding", "redis_key": "trail:{id}"}}
    command = CommandLine(tmp_path, data)
    with ExitStack() as stack:
        connection = stack.enter_context(psycopg.connect(dsn, autocommit=True))
        connection.execute(MEMORIES)
        for arguments in PROCESSES:
            stack.enter_context(command.running(*arguments, "--verbose", OTEL_BSP_SCHEDULE_DELAY="200"))
        client = stack.enter_context(redis.Redis.from_url(data["redis"]["url"]))
        connection.execute("INSERT INTO memories (id, embedding) VALUES (1, '{1,0}')")
        await until(lambda: client.exists("trail:1") == 1, "the pipeline is at work")
        with connection.transaction():
            [(xid,)] = connection.execute("SELECT pg_current_xact_id()::text::bigint & 4294967295").fetchall()
            connection.execute("INSERT INTO memories (id, content, embedding) VALUES (2, %s, '{1,2}')", [SECRET])
            connection.execute(
                "INSERT INTO memories (id, embedding) SELECT n, ARRAY[n, 1] FROM generate_series(3, 9) n"
            )
        reader, working, index = (tmp_path / f"{'-'.join(names)}---verbose.log" for names in PROCESSES)

        def name() -> str:
            found = [line for line in lines(reader, "written") if xid in line["xids"]]
            return found[0]["transactions"][found[0]["xids"].index(xid)] if found else ""

        await until(lambda: bool(name()), "the reader's log names the transaction")
        transaction = name()
        for log in (working, index):
            await until(lambda log=log: transaction in log.read_text(), f"{log.name} names the transaction")
            [first, *_] = [line for line in lines(log, "applied") if transaction in line["transactions"]]
            assert (first["table"], first["count"] > 0, bool(first["offsets"])) == ("public.memories", True, True)
        names = {"source.transaction", "kafka.write", "redis.apply", "faiss.apply"}
        await until(lambda: collector.of(transaction).keys() == names, "spans of all processes")
        found = collector.of(transaction)
        assert len({span.trace_id for span in found.values()}) == 1
        source, write = found["source.transaction"], found["kafka.write"]
        assert (source.parent_span_id, write.parent_span_id) == (b"", source.span_id)
        assert found["redis.apply"].parent_span_id == found["faiss.apply"].parent_span_id == write.span_id
        assert source.start_time_unix_nano <= source.end_time_unix_nano == write.start_time_unix_nano
        assert _attributes(source)["cdc.xid"] == xid
        for store in ("redis", "faiss"):
            assert _attributes(found[f"{store}.apply"])["cdc.table"] == "public.memories"
    said = "".join(log.read_text() for log in (reader, working, index))
    assert SECRET not in said
    assert SECRET not in str(collector.spans)


def test_nothing_of_it_is_loaded_while_it_is_off() -> None:
    code = f"""
import sys, cdc.reader, consumers.runtime, cdc.commands.consume
from cdc.config import parse
from cdc.trail import Trail
trail = Trail(parse({OFF!r}), "redis")
assert not trail.told
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cdc.tracing", None)
    config = parse({**OFF, "tracing": {"endpoint": "http://127.0.0.1:4318/v1/traces"}})
    with pytest.raises(ConfigError, match=r"memory-cdc\[trace\]"):
        Trail(config, "redis")


def test_every_process_samples_the_same_transactions(collector: Collector) -> None:
    reader, store = (Spans(collector.endpoint, 0.25, "m", process) for process in ("reader", "redis"))
    for lsn in range(2000):
        name = b"%08x%016x" % (1, lsn)
        reader.transaction(name, lsn, 1, 2, 3, first=True)
        reader.transaction(name, lsn, 1, 2, 4, first=False)  # its second chunk
        store.applied(name, 3, 5, {}, "redis")
    reader.flush()
    store.flush()
    by_name: dict[str, set[bytes]] = {}
    for span in collector.spans:
        by_name.setdefault(span.name, set()).add(span.trace_id)  # type: ignore[attr-defined]
    assert by_name["source.transaction"] == by_name["kafka.write"] == by_name["redis.apply"]
    assert 400 < len(by_name["kafka.write"]) < 600
    ids = [span.span_id for span in collector.spans]  # type: ignore[attr-defined]
    assert len(ids) == len(set(ids)) == 4 * len(by_name["kafka.write"])
