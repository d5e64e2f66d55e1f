"""Every metric name of every process, in one place, so that rules, dashboards and code cannot drift apart.

Times are exported as Unix timestamps: age is computed in PromQL (`time() - x`) and grows while a process is dead.
Each process serves its own registry on `metrics.host` (loopback unless told otherwise).
"""

from __future__ import annotations

import time

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, Info, start_http_server

from cdc import __version__
from cdc.errors import ConfigError

# 1 ms … 5 min: from a warm pipeline to an outage
LAG_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
SIZE_BUCKETS = (1, 10, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 50_000)

BUILD = Info("cdc_build", "Version of the running code")
CLOCK = Gauge(
    "cdc_clock_timestamp_seconds", "The process's clock; beside the time of the scrape it shows how wrong it is"
)
CLOCK.set_function(time.time)

PAUSED = Gauge(
    "cdc_paused", "1 while the reader or a store's consumer stands still because somebody wants it", ["component"]
)

# reader
SOURCE_HEARTBEAT = Gauge(
    "cdc_source_heartbeat_timestamp_seconds",
    "Commit time of the newest heartbeat the reader has seen",
    ["source"],
)
SOURCE_CLOCK_OFFSET = Gauge(
    "cdc_source_clock_offset_seconds",
    "Clock of PostgreSQL minus clock of the reader, half a round trip exact",
    ["source"],
)
READER_PROGRESS = Gauge("cdc_reader_progress_lsn_bytes", "LSN up to which Kafka holds everything", ["source"])
READER_COMMIT_TIME = Gauge(
    "cdc_reader_committed_timestamp_seconds",
    "Source commit time of the newest change durable in Kafka",
    ["source"],
)
READER_FEEDBACK = Gauge("cdc_reader_feedback_timestamp_seconds", "When the slot last got our feedback", ["source"])
READER_EPOCH = Gauge("cdc_reader_epoch", "Epoch of the source's history", ["source"])
READER_RECORDS = Counter("cdc_reader_records_total", "Records written to Kafka", ["table", "op"])
READER_BYTES = Counter("cdc_reader_stream_bytes_total", "Bytes received from the replication stream", ["source"])
READER_BATCH = Histogram("cdc_reader_batch_records", "Records a Kafka transaction", ["source"], buckets=SIZE_BUCKETS)
READER_RETRIES = Counter("cdc_reader_retries_total", "Restarts of the stream or the writer", ["source", "reason"])
READER_FILLED = Counter("cdc_reader_filled_total", "Column values re-selected from the source", ["table", "reason"])
READER_OVERSIZED = Counter("cdc_reader_oversized_total", "Rows too large for a record, set aside", ["table"])
READER_BLOCKED = Gauge(
    "cdc_reader_blocked", "1 while the reader waits for a person at a change it cannot pass", ["source", "reason"]
)
READER_BUFFER = Gauge("cdc_reader_buffer_bytes", "Bytes read from the slot and not yet durable in Kafka", ["source"])
COMMIT_TO_KAFKA = Histogram(
    "cdc_commit_to_kafka_seconds", "Source commit to durable in Kafka", ["source"], buckets=LAG_BUCKETS
)
SLOT_RETAINED = Gauge("cdc_slot_retained_wal_bytes", "WAL the slot holds back", ["slot"])
SLOT_SAFE = Gauge("cdc_slot_safe_wal_bytes", "WAL that may still be written before the slot is lost", ["slot"])
SLOT_ACTIVE = Gauge("cdc_slot_active", "1 while a reader is connected to the slot", ["slot"])
SLOT_LOST = Gauge("cdc_slot_lost", "1 when the server invalidated the slot", ["slot"])
SOURCE_GAP = Gauge("cdc_source_gap", "1 when slot and progress disagree and the reader refuses to run", ["source"])
SNAPSHOT_ROWS = Counter("cdc_snapshot_rows_total", "Rows read by table snapshots", ["table"])
SNAPSHOT_RUNNING = Gauge("cdc_snapshot_running", "1 while a table's snapshot runs", ["table"])
BACKFILL_OPEN = Gauge("cdc_backfills_running", "Backfills under way", ["table"])
BACKFILLS = Counter("cdc_backfills_total", "Backfills that have ended, by outcome", ["table", "outcome"])
BACKFILL_ROWS = Counter("cdc_backfill_rows_total", "Rows sent by backfills", ["table"])
BACKFILL_TOTAL = Gauge("cdc_backfill_rows_expected", "Rows the backfill begun last is about to send", ["table"])
SOURCE_ROWS = Gauge("cdc_source_rows", "Rows of a table, counted in PostgreSQL", ["table"])

# gateway
GATEWAY_ROUND = Gauge(
    "cdc_gateway_round_timestamp_seconds",
    "When each thing that the gateway does again and again last succeeded, its start before the first time",
    ["round"],
)

# consumers
STORE_APPLIED = Gauge(
    "cdc_store_applied_timestamp_seconds",
    "Source commit time up to which the store holds everything",
    ["store"],
)
STORE_WATERMARK = Gauge("cdc_store_watermark_lsn_bytes", "LSN of the newest position applied", ["store"])
COMMIT_TO_APPLIED = Histogram(
    "cdc_commit_to_applied_seconds", "Source commit to applied in the store", ["store"], buckets=LAG_BUCKETS
)
STORE_RECORDS = Counter("cdc_store_records_total", "Records applied", ["store", "table", "op"])
STORE_STALE = Counter("cdc_store_stale_total", "Records rejected because the store holds a newer version", ["store"])
STORE_BATCH = Histogram("cdc_store_batch_records", "Records a store batch", ["store"], buckets=SIZE_BUCKETS)
STORE_RETRIES = Counter("cdc_store_retries_total", "Retries of a store operation", ["store", "reason"])
STORE_DEAD_LETTERS = Counter(
    "cdc_store_dead_letters_total", "Records sent to the dead-letter topic", ["store", "reason"]
)
STORE_OPEN_LETTERS = Gauge(
    "cdc_store_open_letters", "Dead letters not settled: parked keys, whose newest state the store lacks", ["store"]
)
STORE_OLDEST_LETTER = Gauge(
    "cdc_store_oldest_letter_timestamp_seconds",
    "When the oldest open dead letter was written, NaN without one",
    ["store"],
)
STORE_ROWS = Gauge("cdc_store_rows", "Records of a table, counted in the store itself", ["store", "table"])
STORE_UP = Gauge("cdc_store_up", "1 while the store answers", ["store"])
STORE_REBUILDS = Counter("cdc_store_rebuilds_total", "Rebuilds and refills of a store", ["store", "reason"])
STORE_OFFSET_LAG = Gauge("cdc_store_offset_lag_records", "Records in the topics not yet applied", ["store"])
INDEX_SIZE = Gauge("cdc_index_vectors", "Vectors in the index", ["store"])
INDEX_DEAD = Gauge("cdc_index_dead_ratio", "Share of index slots that hold no live vector", ["store"])
INDEX_SNAPSHOT = Gauge("cdc_index_snapshot_timestamp_seconds", "When the newest valid snapshot was made", ["store"])
INDEX_SKIPPED = Counter("cdc_index_unchanged_total", "Vectors not written because their hash did not change", ["store"])
INDEX_RETRAINS = Counter("cdc_index_retrains_total", "Retrainings of the IVF index", ["store"])
SEARCH_SECONDS = Histogram("cdc_search_seconds", "Time of one search", ["store"], buckets=LAG_BUCKETS)

# verify: the gateway's, from what `cdc.verify_runs` holds, whoever compared
VERIFY_RUNS = Counter(
    "cdc_verify_runs_total", "Comparisons of a store with PostgreSQL, by outcome", ["store", "table", "outcome"]
)
VERIFY_LAST = Gauge("cdc_verify_timestamp_seconds", "When the last comparison ended", ["store", "table"])
VERIFY_PASSED = Gauge(
    "cdc_verify_passed_timestamp_seconds",
    "When the last comparison of all rows ended without a difference, 0 before the first",
    ["store", "table"],
)
VERIFY_SECONDS = Gauge("cdc_verify_seconds", "How long the last comparison took", ["store", "table"])
VERIFY_ROWS = Gauge("cdc_verify_rows", "Rows the last comparison looked at", ["store", "table"])
VERIFY_DIFFERENCES = Gauge(
    "cdc_verify_differences", "Keys that differed in the last comparison, by kind", ["store", "table", "kind"]
)

VERIFY_SINCE = Gauge(
    "cdc_verify_since_timestamp_seconds", "Since when a store's table is to be verified", ["store", "table"]
)

# gateway: schedules, and counts as GET /stats tells them; what is down has no count
SCHEDULE_SUCCESS = Gauge(
    "cdc_schedule_last_success_timestamp_seconds",
    "When a schedule last succeeded; while it never has, since when it has been asked for",
    ["schedule"],
)
SCHEDULE_PERIOD = Gauge("cdc_schedule_period_seconds", "The longest time between two runs of a schedule", ["schedule"])
SCHEDULE_RUNS = Counter("cdc_schedule_runs_total", "Runs of a schedule, by outcome", ["schedule", "outcome"])
GATEWAY_COUNTED = Gauge("cdc_gateway_counted_timestamp_seconds", "When all places were last asked")
GATEWAY_DEGRADED = Gauge("cdc_gateway_degraded", "1 while /stats says degraded")
GATEWAY_UP = Gauge("cdc_gateway_up", "1 while a place answers the gateway", ["place"])
GATEWAY_ROWS = Gauge("cdc_gateway_rows", "Records of a table as a place itself counts them", ["place", "table"])
GATEWAY_UNEXPLAINED = Gauge(
    "cdc_gateway_unexplained_rows",
    "Records by which a store's count differs from PostgreSQL's beyond what lag explains",
    ["store", "table"],
)


def serve(host: str, port: int) -> int:
    """Serves `/metrics`; port 0 takes a free one. Returns the port. Raises ConfigError when it is taken."""
    BUILD.info({"version": __version__})
    try:
        server, _thread = start_http_server(port, addr=host)
    except OSError as error:
        raise ConfigError(
            f"metrics cannot listen on {host}:{port}: {error.strerror}", hint="choose a free port, or 0"
        ) from error
    return int(server.server_port)


def names() -> set[str]:
    """Every sample name this code can export: what rules and dashboards may speak of."""
    found: set[str] = set()
    for family in REGISTRY.collect():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "info": ("_info",)}
        found.update(family.name + s for s in suffixes.get(family.type, ("",)))
    return {n for n in found if n.startswith("cdc_")}
