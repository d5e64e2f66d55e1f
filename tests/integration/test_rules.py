"""Alert rules, dashboard and runbook: sound by promtool, and speaking of nothing that the code does not export."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cdc import metrics
from cdc.config import Freshness, load
from tests.monitoring import (
    OPERATIONS,
    PROMETHEUS,
    ROOT,
    RUNBOOK,
    dashboard_queries,
    metric_names,
    panels,
    rules,
    sections,
)

JOBS = {"cdc-reader", "cdc-redis", "cdc-faiss", "cdc-gateway"}


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def recorded_names(expression: str) -> set[str]:
    return set(re.findall(r"\bcdc:\w+", expression))


def family(sample: str) -> str:
    """A histogram's three sample names under the one name that the table gives."""
    return re.sub(r"_(bucket|sum|count)$", "", sample)


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_config_and_rules() -> None:
    promtool("check", "config", PROMETHEUS / "prometheus.yml")


def test_every_alert_fires_and_stays_silent_when_it_should() -> None:
    promtool("test", "rules", PROMETHEUS / "rules_test.yml")


def test_every_alert_is_tested_both_ways() -> None:
    cases = [
        case
        for test in yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    fired = {(c["alertname"], e["exp_labels"]["severity"]) for c in cases for e in c["exp_alerts"]}
    silent = {case["alertname"] for case in cases if not case["exp_alerts"]}
    assert fired == {(alert["alert"], alert["labels"]["severity"]) for alert in alerts()}
    assert silent == {alert["alert"] for alert in alerts()}


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_rules_use_only_metrics_that_are_exported(rule: dict[str, Any]) -> None:
    assert metric_names(rule["expr"]) <= metrics.names()
    assert recorded_names(rule["expr"]) <= {r["record"] for r in rules() if "record" in r}
    assert set(re.findall(r'job="([^"]+)"', rule["expr"])) <= JOBS


def test_dashboard_uses_only_metrics_that_are_exported() -> None:
    names = set().union(*map(metric_names, dashboard_queries()))
    recorded = set().union(*map(recorded_names, dashboard_queries()))
    assert names <= metrics.names()
    assert recorded <= {rule["record"] for rule in rules() if "record" in rule}


def test_every_exported_metric_is_watched_and_documented() -> None:
    expressions = [*dashboard_queries(), *(rule["expr"] for rule in rules())]
    watched = {family(name) for expression in expressions for name in metric_names(expression)}
    table = set(re.findall(r"^\| `(cdc_\w+)` \|", OPERATIONS.read_text(), re.M))
    exported = {family(name) for name in metrics.names()}
    assert exported == table
    assert exported == watched


def test_queries_of_the_dashboard_parse(tmp_path: Path) -> None:
    recording = [{"record": f"query:{i}", "expr": query} for i, query in enumerate(dashboard_queries())]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recording}]}))
    promtool("check", "rules", file)


def test_dashboard_is_whole() -> None:
    provisioned = yaml.safe_load((ROOT / "docker/grafana/provisioning/datasources/prometheus.yaml").read_text())
    uids = {source["uid"] for source in provisioned["datasources"]}
    assert len({panel["id"] for panel in panels()}) == len(panels())
    for panel in panels():
        assert panel["datasource"]["uid"] in uids, panel["title"]
        assert panel["title"]
        assert panel["description"]
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels())
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells), "panels overlap"
    assert max(x for x, _ in cells) < 24  # Grafana's grid


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: f"{alert['alert']}-{alert['labels']['severity']}")
def test_alert_leads_to_its_runbook_section(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert {"summary", "description", "runbook_url"} == set(alert["annotations"])
    file, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert (ROOT / file) == RUNBOOK
    assert anchor in sections()


@pytest.mark.parametrize("document", [RUNBOOK, OPERATIONS], ids=lambda path: path.stem)
def test_links_of_runbook_and_operations_lead_somewhere(document: Path) -> None:
    for file, anchor in re.findall(r"\]\(([\w.]*)#([^)]+)\)", document.read_text()):
        assert anchor in sections(document.parent / file if file else document), anchor


def test_every_section_of_the_runbook_has_its_alert() -> None:
    headings = re.findall(r"^## (.+)$", RUNBOOK.read_text(), re.M)
    linked = {alert["annotations"]["runbook_url"].partition("#")[2] for alert in alerts()}
    assert {heading.lower().replace(" ", "-").replace("'", "") for heading in headings} == linked


def test_sections_of_alerts_say_what_how_and_mend() -> None:
    for anchor in {alert["annotations"]["runbook_url"].partition("#")[2] for alert in alerts()}:
        assert all(f"**{part}.**" in sections()[anchor] for part in ("Means", "Look", "Mend")), anchor


def test_objective_is_the_same_everywhere() -> None:
    recorded = next(r["expr"] for r in rules() if r.get("record") == "cdc:freshness_objective_seconds")
    seconds = float(re.fullmatch(r"vector\((.+)\)", recorded)[1])  # type: ignore[index]
    assert seconds == Freshness().objective_seconds
    assert seconds == load(ROOT / "docker/cdc.toml", {}).freshness.objective_seconds


def test_alertmanager_routes_to_a_receiver_and_inhibits_real_alerts() -> None:
    config = yaml.safe_load((ROOT / "docker/alertmanager/alertmanager.yml").read_text())
    assert config["route"]["receiver"] in {receiver["name"] for receiver in config["receivers"]}
    named = set(re.findall(r"Cdc\w+", json.dumps(config["inhibit_rules"])))
    assert named <= {alert["alert"] for alert in alerts()}
