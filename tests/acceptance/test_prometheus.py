"""A real Prometheus watches the running pipeline: silent while all is well, loud while a consumer hangs or is dead."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psycopg
import pytest
import redis

from cdc.config import load
from cdc.embedded.folder import Folder
from cdc.embedded.identity import Identity
from tests.acceptance.conftest import Pipeline
from tests.monitoring import ROOT, RUNBOOK, dashboard_queries, metric_names, sections
from tests.prometheus import Prometheus
from tests.waiting import until

PROGRAM = shutil.which("prometheus")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no prometheus; `make setup` installs it")

TEXTS = 20
ON_EVENTS = {  # these series are born with the first event of their kind, and none of them is due here
    "cdc_backfill_rows_expected": "somebody asked for a backfill",
    "cdc_backfill_rows_total": "the same",
    "cdc_backfills_running": "the same",
    "cdc_backfills_total": "the same",
    "cdc_index_retrains_total": "an index of another kind than Flat was trained anew",
    "cdc_reader_filled_total": "the output plugin left out a value",
    "cdc_reader_oversized_total": "a row was too large for a record",
    "cdc_reader_retries_total": "the reader lost a server",
    "cdc_schedule_runs_total": "a schedule was due",
    "cdc_store_dead_letters_total": "a store refused a record",
    "cdc_store_rebuilds_total": "a store was filled anew",
    "cdc_store_retries_total": "a consumer lost a server",
    "cdc_verify_differences": "somebody had the gateway verify",
    "cdc_verify_rows": "the same",
    "cdc_verify_runs_total": "the same",
    "cdc_verify_seconds": "the same",
    "cdc_verify_timestamp_seconds": "the same",
}


@pytest.fixture(scope="module")
def prometheus(pipeline: Pipeline) -> Iterator[Prometheus]:
    """It scrapes the running pipeline."""
    metrics = load(Path(pipeline.found["config"]), {}).metrics
    ports = {part: getattr(metrics, f"{part}_port") for part in ("reader", "redis", "faiss", "gateway")}
    targets = {f"cdc-{part}": f"{metrics.host}:{port}" for part, port in ports.items()}
    folder = Folder(pipeline.data / "prometheus")
    folder.lock()
    assert PROGRAM is not None
    server = Prometheus(folder, PROGRAM, targets)
    try:
        server.start()
        yield server
        print("alerts at the end:", server.alerts("pending", "firing"))
    finally:
        server.stop()
        folder.unlock()


def process_of(pipeline: Pipeline, name: str) -> Identity:
    """One of the pipeline's processes, or the `owner`, which is their supervisor."""
    found = Identity.read(Folder(pipeline.data).pid_file(name))
    assert found is not None, f"{name} does not run"
    return found


@contextmanager
def frozen(process: Identity) -> Iterator[None]:
    """It lives, and does nothing."""
    process.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.signal(signal.SIGCONT)


async def quiet(prometheus: Prometheus) -> None:
    """Until all is well: everything scraped, every rule evaluated, both stores fresh, and nothing to complain of."""

    def well() -> bool:
        return (
            prometheus.targets() == dict.fromkeys(("cdc-reader", "cdc-redis", "cdc-faiss", "cdc-gateway"), "up")
            and all(rule["health"] == "ok" for rule in prometheus.rules())
            and {series["store"] for series, _ in prometheus.query("cdc:store_age_seconds")} == {"redis", "faiss"}
            and not prometheus.alerts("pending", "firing")
        )

    await until(well, "everything up and no alert")


def firing(prometheus: Prometheus) -> set[tuple[str, str]]:
    """Which alert, and of what; each leads to its section of the runbook."""
    found = set()
    for alert in prometheus.alerts("firing"):
        file, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert ROOT / file == RUNBOOK
        assert anchor in sections()
        labels = alert["labels"]
        found.add((labels["alertname"], labels.get("store") or labels.get("job") or labels.get("schedule", "")))
    return found


async def test_a_fresh_pipeline_raises_no_alert(prometheus: Prometheus) -> None:
    await quiet(prometheus)
    assert all(age >= 0 for _, age in prometheus.query("cdc:store_age_seconds"))


async def test_a_hanging_consumer_is_noticed_until_it_goes_on(pipeline: Pipeline, prometheus: Prometheus) -> None:
    await quiet(prometheus)
    consumer = process_of(pipeline, "consumer-redis")
    with frozen(consumer):
        await until(
            lambda: firing(prometheus) == {("CdcFreshnessMissed", "redis"), ("CdcProcessDown", "cdc-redis")},
            "exactly the alerts of a hanging Redis consumer",
        )
        assert process_of(pipeline, "consumer-redis") == consumer, "it was started again, so nothing hung"
    await quiet(prometheus)
    assert process_of(pipeline, "consumer-redis") == consumer, "it did not go on by itself"


async def test_a_dead_consumer_is_noticed_until_it_is_back(pipeline: Pipeline, prometheus: Prometheus) -> None:
    await quiet(prometheus)
    dead = process_of(pipeline, "consumer-faiss")
    with frozen(process_of(pipeline, "owner")):
        dead.signal(signal.SIGKILL)
        await until(
            lambda: firing(prometheus) >= {("CdcFreshnessMissed", "faiss"), ("CdcProcessDown", "cdc-faiss")},
            "the alerts of a dead FAISS consumer",
        )
        assert not dead.alive()
    await quiet(prometheus)
    assert process_of(pipeline, "consumer-faiss") != dead


async def test_a_loss_that_nobody_saw_is_noticed_until_it_is_mended(pipeline: Pipeline, prometheus: Prometheus) -> None:
    await use(pipeline, prometheus)
    await quiet(prometheus)
    with redis.Redis.from_url(pipeline.found["redis_url"]) as working_memory:
        working_memory.delete(next(working_memory.scan_iter("memory:*-*")))

    def told() -> bool:
        httpx.get(f"{pipeline.found['gateway']}/stats").raise_for_status()  # or the gateway's own look, each minute
        return ("CdcCountsDiffer", "redis") in firing(prometheus)

    await until(told, "the alert of counts that differ")
    assert pipeline.cdc("verify", "--repair").returncode == 0  # as the runbook says

    def mended() -> bool:
        httpx.get(f"{pipeline.found['gateway']}/stats").raise_for_status()
        return not prometheus.query("cdc_gateway_unexplained_rows > 0") and "CdcCountsDiffer" not in str(
            firing(prometheus)
        )

    await until(mended, "the alert's end")


async def test_a_store_that_no_verify_passed_is_noticed_until_one_does(
    pipeline: Pipeline, prometheus: Prometheus
) -> None:
    await use(pipeline, prometheus)
    with psycopg.connect(pipeline.found["postgres_dsn"], autocommit=True) as connection:
        connection.execute("UPDATE cdc.verify_subjects SET first_seen = now() - interval '2 days'")
        connection.execute("UPDATE cdc.verify_runs SET started_at = started_at - interval '2 days', "
                           "ended_at = ended_at - interval '2 days'")  # fmt: skip

    def stores() -> set[str]:
        return {name for alert, name in firing(prometheus) if alert == "CdcVerifyNotPassed"}

    await until(lambda: stores() == {"redis", "faiss"}, "the alert of each store")
    done = pipeline.cdc("verify")
    assert done.returncode == 0, done.stdout + done.stderr
    await until(lambda: not stores(), "the alert's end")


async def test_the_dashboard_shows_the_living_system(pipeline: Pipeline, prometheus: Prometheus) -> None:
    await use(pipeline, prometheus)
    queries = dashboard_queries()
    wanted = set().union(*map(metric_names, queries))
    assert set(ON_EVENTS) <= wanted
    await until(
        lambda: wanted - set(ON_EVENTS) <= set(prometheus.ask("label/__name__/values")), "every metric of the dashboard"
    )
    shown = [query for query in queries if not metric_names(query) & set(ON_EVENTS)]
    await until(lambda: all(map(prometheus.query, shown)), "every curve of the dashboard")
    for query in queries:
        prometheus.query(query)
    ops = {series["op"] for series, _ in prometheus.query("cdc_reader_records_total")}
    assert ops - {"r"} == {"c", "u", "d", "tombstone"}  # r: sent again by a repair


async def use(pipeline: Pipeline, prometheus: Prometheus) -> None:
    """Rows come, change and go, and somebody searches."""
    rows = vectors(prometheus)
    with psycopg.connect(pipeline.found["postgres_dsn"], autocommit=True) as connection:
        connection.execute(
            "INSERT INTO memories (user_id, content) SELECT 'ada', 'river number ' || i FROM generate_series(1, %s) i",
            [TEXTS],
        )
        await until(lambda: vectors(prometheus) == rows + TEXTS, "the texts are in the index")
        connection.execute("UPDATE memories SET importance = 0.5")
        connection.execute("DELETE FROM memories WHERE content = 'river number 1'")
    await until(lambda: vectors(prometheus) == rows + TEXTS - 1, "the text has left the index")
    search(pipeline)


def vectors(prometheus: Prometheus) -> float:
    return sum(value for _, value in prometheus.query("cdc_index_vectors"))


def search(pipeline: Pipeline) -> None:
    httpx.post(f"{pipeline.found['gateway']}/search", json={"text": "rivers"}).raise_for_status()
