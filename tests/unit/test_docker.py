"""Compose file, images and their config, checked as far as that goes without a Docker engine."""

from __future__ import annotations

import importlib.resources
import itertools
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cdc.commands.addresses import PROCESSES
from cdc.config import Config, load

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
COMPOSE = DOCKER / "compose.yaml"
OURS = ("reader", "consumer-redis", "consumer-faiss", "gateway", "cdc")
METRICS_PORT = 9480  # of every process in its container


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load(COMPOSE.read_text()))


def services() -> dict[str, Any]:
    return dict(compose()["services"])


def schema_errors(document: Any) -> list[str]:
    """What the Compose specification's schema, as check-jsonschema ships it, says of the document."""
    file = importlib.resources.files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json")
    schema = json.loads(file.read_text())
    validator = jsonschema.validators.validator_for(schema)(schema)  # the schema says which draft it follows
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """`(instruction, arguments)` of each line, continuation lines joined, comments left out."""
    lines = [line for line in dockerfile.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name.upper(), rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines())]


def loaded(service: str, folder: Path) -> Config:
    """The config as this service of the compose file sees it, its secrets put into `folder`."""
    spec = services()[service]
    environ = {}
    for name, value in spec.get("environment", {}).items():
        secret = folder / Path(value).name
        secret.write_text(f"secret of {secret.name}\n")
        assert Path(value).parts[:3] == ("/", "run", "secrets"), f"{name} is not read from a secret"
        assert secret.name in spec["secrets"], f"{service} is not given {secret.name}"
        environ[name] = str(secret)
    return load(DOCKER / "cdc.toml", environ)


def mounts(spec: dict[str, Any]) -> list[tuple[str, str]]:
    return [(source, target) for source, target, *_ in (v.split(":") for v in spec.get("volumes", []))]


def test_compose_file_follows_the_specification() -> None:
    assert schema_errors(compose()) == []


@pytest.mark.parametrize(
    "broken",
    [
        {"services": {"reader": {"imagee": "memory-cdc"}}},
        {"services": {"reader": {"depends_on": {"kafka": {"condition": "healthy"}}}}},
        {"services": {"reader": {"mem_limit": ["512m"]}}},
    ],
)
def test_the_schema_refuses_what_is_wrong(broken: dict[str, Any]) -> None:
    assert schema_errors(broken)


def test_all_parts_of_the_pipeline_are_there() -> None:
    servers = {"postgres", "kafka", "redis", "prometheus", "alertmanager", "grafana"}
    assert set(services()) == servers | set(OURS)


@pytest.mark.parametrize("service", OURS)
def test_config_is_valid_with_the_environment_of_each_service(service: str, tmp_path: Path) -> None:
    config = loaded(service, tmp_path)
    environment = services()[service].get("environment", {})
    given = {f"CDC_{s.upper()}__PASSWORD_FILE" for s in ("postgres", "redis") if getattr(config, s).password}
    given |= {"CDC_GATEWAY__ADMIN_KEY_FILE"} if config.gateway.admin_key else set()
    assert given == set(environment)


def test_config_names_the_services() -> None:
    config = tomllib.loads((DOCKER / "cdc.toml").read_text())
    assert re.search(r"host=(\S+)", config["postgres"]["dsn"])[1] in services()  # type: ignore[index]
    assert config["kafka"]["bootstrap"].split(":")[0] in services()
    assert re.search(r"//([^:/]+)", config["redis"]["url"])[1] in services()  # type: ignore[index]
    advertised = services()["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert advertised.endswith("//" + config["kafka"]["bootstrap"])
    assert services()["postgres"]["environment"]["POSTGRES_DB"] in config["postgres"]["dsn"]


def test_largest_record_fits_into_the_broker(tmp_path: Path) -> None:
    limit = services()["kafka"]["environment"]["KAFKA_MESSAGE_MAX_BYTES"]
    assert limit > loaded("reader", tmp_path).kafka.max_record_bytes


def test_every_process_serves_metrics_where_they_are_looked_for(tmp_path: Path) -> None:
    metrics = loaded("reader", tmp_path).metrics
    assert {getattr(metrics, f"{name}_port") for name in PROCESSES} == {METRICS_PORT}
    health = next(rest for name, rest in instructions(DOCKER / "Dockerfile") if name == "HEALTHCHECK")
    assert f"127.0.0.1:{METRICS_PORT}/metrics" in health
    scraped = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in scraped}
    assert targets == {
        "cdc-reader": [f"reader:{METRICS_PORT}"],
        "cdc-redis": [f"consumer-redis:{METRICS_PORT}"],
        "cdc-faiss": [f"consumer-faiss:{METRICS_PORT}"],
        "cdc-gateway": [f"gateway:{METRICS_PORT}"],
    }


def test_config_and_mounts_lead_somewhere() -> None:
    for name, spec in services().items():
        targets = [target for _, target in mounts(spec)]
        words = [*spec.get("command", []), *" ".join(spec.get("entrypoint", [])).split()]
        for flag, path in itertools.pairwise(words):
            if flag == "--config":
                assert path in targets, f"{name} reads {path}, which is not mounted"
        for source, target in mounts(spec):
            if source.startswith("."):
                assert (DOCKER / source).exists(), f"{name} mounts {source}, which is not there"
            else:
                assert source in compose()["volumes"], f"{name}: {source} is no named volume"
            assert target.startswith("/")


def test_only_what_a_store_keeps_is_written_by_our_processes(tmp_path: Path) -> None:
    path = str(loaded("consumer-faiss", tmp_path).faiss.path)
    for name in OURS:
        spec = services()[name]
        assert spec["read_only"], name
        assert spec["cap_drop"] == ["ALL"], name
        assert [t for s, t in mounts(spec) if not s.startswith(".")] in ([], [path]), name


def test_nothing_is_published_beyond_loopback() -> None:
    for name, spec in services().items():
        assert all(port.startswith("127.0.0.1:") for port in spec.get("ports", [])), name
        assert spec.get("network_mode") is None, name
        assert not spec.get("privileged"), name


def test_services_wait_for_healthy_ones_and_have_limits() -> None:
    with_check = {name for name, spec in services().items() if "test" in spec.get("healthcheck", {})}
    with_check |= {name for name in OURS if name != "cdc"}  # the image's own
    for name, spec in services().items():
        assert "mem_limit" in spec, name
        assert spec["restart"] in ("unless-stopped", "no"), name
        for other, how in spec.get("depends_on", {}).items():
            assert how["condition"] == "service_healthy", name
            assert other in with_check, f"{name} waits for the health of {other}, which has no check"


def test_secrets_are_files_that_the_script_makes(tmp_path: Path) -> None:
    declared = compose()["secrets"]
    used = {secret for spec in services().values() for secret in spec.get("secrets", [])}
    assert used == set(declared)
    script = shutil.copy(DOCKER / "secrets/create.sh", tmp_path)
    subprocess.run([script], check=True, capture_output=True)
    made = {f.name: f.read_text() for f in tmp_path.iterdir() if f.name != "create.sh"}
    assert {Path(secret["file"]).name for secret in declared.values()} == set(made)
    assert all(re.fullmatch(r"[0-9a-f]{48}", password) for password in made.values())
    assert len(set(made.values())) == len(made)
    again = subprocess.run([script], check=True, capture_output=True, text=True)
    assert again.stdout.count("kept") == len(made)
    assert {f.name: f.read_text() for f in tmp_path.iterdir() if f.name != "create.sh"} == made


def test_no_password_stands_in_a_file() -> None:
    for name, spec in services().items():
        for variable, value in spec.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN", variable):
                assert str(value).startswith("/run/secrets/"), f"{name}: {variable}"
    config = tomllib.loads((DOCKER / "cdc.toml").read_text())
    assert not [f"{a}.{b}" for a, part in config.items() if isinstance(part, dict) for b in part if "password" in b]
    assert "password" not in config["postgres"]["dsn"]
    assert "@" not in config["redis"]["url"]


def test_images_and_addresses_name_no_other_host() -> None:
    images = [spec["image"] for spec in services().values()]
    bases = [
        rest.split()[0]
        for file in (DOCKER / "Dockerfile", DOCKER / "postgres/Dockerfile")
        for name, rest in instructions(file)
        if name == "FROM"
    ]
    for image in images + bases:
        first, *more = image.split("/")
        assert not more or not re.search("[.:]", first), f"{image} names a registry"
    for image in [i for i in images if not i.startswith("memory-cdc")] + bases:
        assert re.search(r":v?\d+(\.\d+)*(-\w+)*$", image), f"{image} is not held to a version"
    for file in (f for f in DOCKER.rglob("*") if f.is_file()):
        for host in re.findall(r"\w://([A-Za-z][\w.-]*)", file.read_text()):
            assert host in services(), f"{file.relative_to(ROOT)} speaks of {host}"


@pytest.mark.parametrize("dockerfile", ["Dockerfile", "postgres/Dockerfile"])
def test_copied_files_are_there_and_reach_the_builder(dockerfile: str) -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for name, rest in instructions(DOCKER / dockerfile):
        words = [word for word in rest.split() if not word.startswith("--")]
        if name != "COPY" or "--from" in rest:
            continue
        for source in words[:-1]:
            assert (ROOT / source).exists(), f"{dockerfile} copies {source}, which is not there"
            assert any(source == a or source.startswith(a + "/") for a in allowed), f"{source} is kept from the builder"


def test_our_image_is_multi_stage_and_runs_as_nobody_special() -> None:
    steps = instructions(DOCKER / "Dockerfile")
    names = [name for name, _ in steps]
    assert names.count("FROM") == 2
    last = names[len(names) - names[::-1].index("FROM") - 1 :]
    user = next(rest for name, rest in steps if name == "USER")
    assert int(user.split(":")[0]) >= 1000
    assert {"USER", "HEALTHCHECK", "ENTRYPOINT"} <= set(last)
    assert last.index("USER") < last.index("ENTRYPOINT")
    assert "ADD" not in names
    assert any("--require-hashes" in rest for _, rest in steps)
    assert not [rest for name, rest in steps if name in ("ENV", "ARG") and re.search("(?i)password|secret|token", rest)]


def test_commands_of_the_services_are_ours() -> None:
    commands = {name: services()[name]["command"] for name in OURS}
    assert commands["reader"][0] == "reader"
    assert commands["consumer-redis"][:2] == ["consume", "redis"]
    assert commands["consumer-faiss"][:2] == ["consume", "faiss"]
    assert commands["gateway"][0] == "gateway"
    entrypoint = next(rest for name, rest in instructions(DOCKER / "Dockerfile") if name == "ENTRYPOINT")
    assert json.loads(entrypoint) == ["cdc"]


@pytest.mark.parametrize("script", ["secrets/create.sh", "postgres/init.sh"])
def test_scripts_parse_and_may_be_run(script: str) -> None:
    subprocess.run(["sh", "-n", str(DOCKER / script)], check=True)
    assert (DOCKER / script).stat().st_mode & 0o111


def test_wal2json_is_installed_and_allowed() -> None:
    text = " ".join(rest for _, rest in instructions(DOCKER / "postgres/Dockerfile"))
    assert "postgresql-${PG_MAJOR}-wal2json" in text
    assert "output_plugin_libraries = 'pgoutput, test_decoding, wal2json'" in text
    assert re.search(r"^wal_level = logical$", (DOCKER / "postgres/postgresql.conf").read_text(), re.M)
