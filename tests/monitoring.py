"""Alert rules, dashboard and runbook as the tests read them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PROMETHEUS = ROOT / "docker/prometheus"
DASHBOARD = ROOT / "docker/grafana/dashboards/memory-cdc.json"
RUNBOOK = ROOT / "docs/runbooks.md"
OPERATIONS = ROOT / "docs/operations.md"


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return list(json.loads(DASHBOARD.read_text())["panels"])


def dashboard_queries() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def metric_names(expression: str) -> set[str]:
    """The cdc_* identifiers of a PromQL expression; recorded ones (cdc:…) and strings are left out."""
    return set(re.findall(r"(?<![\w:])cdc_\w+", re.sub(r'"[^"]*"', '""', expression)))


def sections(document: Path = RUNBOOK) -> dict[str, str]:
    """A document's sections by the anchor of their heading, formed as GitHub forms it."""
    parts = re.split(r"^#+ (.+)$", document.read_text(), flags=re.M)
    anchors = (re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in parts[1::2])
    return dict(zip(anchors, parts[2::2], strict=True))
