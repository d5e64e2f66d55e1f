"""A real Prometheus with the project's own config and rules, only faster, as a child process that dies with us."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any

import httpx
import yaml

from cdc.embedded import Server
from cdc.embedded.folder import HOST, Folder
from tests.monitoring import PROMETHEUS

INTERVAL = "1s"  # instead of 5 s between scrapes and evaluations
PENDING = "2s"  # every rule's `for`: long enough to pass through the pending state
ANSWER_SECONDS = 10.0


class Prometheus(Server):
    """Scrapes `targets` (job → host:port); every job of the project's config needs one. What it says is in `alerts`."""

    name = "prometheus"
    title = "Prometheus"
    stop_signals = ((signal.SIGTERM, 10.0),)

    def __init__(self, folder: Folder, program: str, targets: Mapping[str, str]) -> None:
        super().__init__(folder, {})
        self._program = program
        self._targets = targets
        self._address = f"{HOST}:{folder.ports((self.name,))[self.name]}"

    @property
    def provider(self) -> str:
        return self._program

    def prepare(self) -> None:
        """The project's files with other durations and targets; expressions are left as they are."""
        config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
        config["global"] = dict.fromkeys(config["global"], INTERVAL)
        del config["alerting"]  # nobody to tell
        for job in config["scrape_configs"]:
            job["static_configs"] = [{"targets": [self._targets[job["job_name"]]]}]
        rules = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())
        for rule in (rule for group in rules["groups"] for rule in group["rules"] if "for" in rule):
            rule["for"] = PENDING
        (self.folder.path / "rules.yml").write_text(yaml.safe_dump(rules))
        (self.folder.path / "prometheus.yml").write_text(yaml.safe_dump(config))

    def command(self) -> list[str]:
        folder = self.folder.path
        options = {
            "config.file": folder / "prometheus.yml",
            "storage.tsdb.path": folder / "data",
            "web.listen-address": self._address,
            "log.level": "warn",
        }
        return [self._program, *(f"--{name}={value}" for name, value in options.items())]

    def answers(self) -> bool:
        try:
            return httpx.get(f"http://{self._address}/-/ready", timeout=ANSWER_SECONDS).is_success
        except httpx.TransportError:
            return False

    def ask(self, path: str, **parameters: str) -> Any:
        """`data` of an answer of the HTTP API; an expression that cannot be evaluated fails the test."""
        url = f"http://{self._address}/api/v1/{path}"
        answer = httpx.get(url, params=parameters, timeout=ANSWER_SECONDS).json()
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of every series now."""
        found = self.ask("query", query=expression)["result"]
        return [(series["metric"], float(series["value"][1])) for series in found]

    def alerts(self, *states: str) -> list[dict[str, Any]]:
        """Those in one of the states `pending` and `firing`."""
        return [alert for alert in self.ask("alerts")["alerts"] if alert["state"] in states]

    def rules(self) -> list[dict[str, Any]]:
        """Every rule with its health."""
        return [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]

    def targets(self) -> dict[str, str]:
        """Job → `up`, `down` or `unknown`."""
        return {target["labels"]["job"]: target["health"] for target in self.ask("targets")["activeTargets"]}
