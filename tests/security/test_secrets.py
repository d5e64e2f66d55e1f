"""Canaries for secrets, right ones and wrong ones: no command, error, log, `--json` or repr ever shows them."""

from __future__ import annotations

import asyncio
import secrets
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import structlog
from psycopg import sql
from psycopg.conninfo import make_conninfo

from cdc.cli import run
from cdc.config import load, parse
from cdc.embedded import Endpoints
from cdc.errors import ConfigError
from cdc.kafka.topics import ensure_topics
from cdc.migrations import migrate
from cdc.settings_file import write_passfile
from tests.command_line import toml_of
from tests.pipeline import settings
from tests.security.broker import Acl, administrate
from tests.security.conftest import Secured, opened

RIGHT = {name: f"canary{secrets.token_hex(8)}" for name in ("postgres", "kafka", "redis", "mask")}
WRONG = {name: f"canary{secrets.token_hex(8)}" for name in RIGHT}
USER = "canaries"
TABLE = "public.memories"
KEY = "00000000-0000-0000-0000-000000000001"
RIGHTS = ("Create", "Read", "Write", "DescribeConfigs")
METRICS = ("reader_port", "redis_port", "faiss_port")


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands point the logs at the captured stderr; uvloop has words of its own for what aiokafka leaves open, which
    pyproject.toml ignores in asyncio's."""
    monkeypatch.setattr("uvloop.run", asyncio.run)
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture(scope="module")
def canaries(secured: Secured, secured_database: str) -> None:
    """Users of all three servers whose passwords are canaries, with every right."""
    migrate(secured_database)
    with psycopg.connect(secured_database, autocommit=True) as connection:
        password = sql.Literal(RIGHT["postgres"])
        connection.execute(sql.SQL("CREATE ROLE canaries SUPERUSER LOGIN PASSWORD {}").format(password))
    asyncio.run(
        administrate(
            secured.open.kafka_bootstrap,
            {USER: RIGHT["kafka"]},
            [Acl(f"User:{USER}", "topic", "t", "prefixed", RIGHTS)],
        )
    )
    with opened(secured.open.redis_url) as client:
        client.execute_command("ACL", "SETUSER", USER, "reset", "on", f">{RIGHT['redis']}", "~*", "+@all")


@pytest.fixture
def data(secured: Secured, secured_database: str, tmp_path: Path, canaries: None) -> dict[str, Any]:
    """A complete configuration, its secrets where a person may put them."""
    return _settings(secured, secured_database, tmp_path, RIGHT)


def _settings(secured: Secured, dsn: str, folder: Path, passwords: dict[str, str]) -> dict[str, Any]:
    made = settings(secured.open, secured.dsn(make_conninfo(dsn, user=USER, password=passwords["postgres"])), folder)
    made["kafka"] |= secured.kafka("cdc-reader") | {"username": USER, "password": passwords["kafka"]}
    made["redis"] |= secured.redis(USER, passwords["redis"], 7)
    made["redis"]["url"] = made["redis"]["url"].replace("@", f":{made['redis'].pop('password')}@")
    made["metrics"], made["index"] = dict.fromkeys(METRICS, 0), {"port": 0}
    made["mask_secret"] = passwords["mask"]
    made["tables"] = {TABLE: {"text": "content"}}
    return made


def said(capsys: pytest.CaptureFixture[str], folder: Path, data: dict[str, Any], *arguments: str) -> tuple[int, str]:
    """One command in this process: its exit code and all it printed, which holds no canary."""
    path = folder / "cdc.toml"
    path.write_text(toml_of(data))
    code = run(["--config", str(path), *arguments])
    printed = "".join(capsys.readouterr())
    for secret in (*RIGHT.values(), *WRONG.values()):
        assert secret not in printed, printed
    assert "Traceback" not in printed
    return code, printed


COMMANDS = [
    ("doctor",), ("doctor", "--json"), ("status", "--json"), ("verify", "--json"), ("versions", KEY, "--json"),
    ("rebuild", "redis", "--json"), ("snapshot", TABLE, "--json"), ("resync", "--json"), ("reader", "--verbose"),
    ("consume", "redis", "--verbose"), ("consume", "faiss", "--verbose"),
]  # fmt: skip
ASKS = {  # which servers a command asks first: with one of them refusing, it is refused
    "doctor": ("postgres", "kafka", "redis"), "status": ("postgres", "kafka", "redis"), "verify": ("postgres", "kafka"),
    "versions": ("postgres", "redis"), "rebuild": ("kafka", "redis"), "snapshot": ("postgres",),
    "resync": ("postgres", "kafka"), "reader": ("postgres", "kafka"), "consume": ("kafka",),
}  # fmt: skip


@pytest.mark.parametrize(("command", "server"), [(c, s) for c in COMMANDS for s in ASKS[c[0]]])
def test_a_refused_secret_is_not_shown(
    secured: Secured, secured_database: str, canaries: None, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    command: tuple[str, ...], server: str,
) -> None:  # fmt: skip
    data = _settings(secured, secured_database, tmp_path, {**RIGHT, server: WRONG[server]})
    code, printed = said(capsys, tmp_path, data, *command)
    assert code in (1, 2), printed
    assert "password" in printed


@pytest.mark.parametrize("command", [("doctor", "--json"), ("doctor",), ("status", "--json"), ("status",)])
def test_an_accepted_secret_is_not_shown(
    data: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    asyncio.run(ensure_topics(parse(data).kafka, [("public", "memories")]))
    code, printed = said(capsys, tmp_path, data, *command)
    assert code in (0, 1), printed
    assert "cdc: " not in printed  # it was not refused


FAULTS: list[dict[str, Any]] = [
    {"postgres": {"dsn": "postgresql://u:{}@[h/d"}},
    {"postgres": {"dsn": "host=h {}"}},
    {"postgres": {"dsn": ["{}"]}},
    {"postgres": {"dsn": "host=h", "pasword": "{}"}},
    {"postgres": {"dsn": "host=h", "password": ["{}"]}},
    {"postgres": "postgresql://u:{}@h/d"},
    {"redis": {"url": "redis://:x/{}@h:6379"}},
    {"redis": {"url": "redis://:{}@h:port"}},
    {"redis": {"url": "http://:{}@h"}},
    {"redis": {"url": "redis://:{}@h", "ca_file": __file__}},
    {"kafka": {"bootstrap": "h:1", "security_protocol": "SASL_SSL", "password": "{}"}},
    {"kafka": {"bootstrap": "h:1", "password": {"value": "{}"}}},
    {"mask_secret": 5.5, "source_nam": "{}"},
]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_setting_does_not_quote_a_secret(fault: dict[str, Any]) -> None:
    secret = WRONG["postgres"]

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: filled(inner) for name, inner in value.items()}
        return [filled(inner) for inner in value] if isinstance(value, list) else _put(value, secret)

    with pytest.raises(ConfigError) as found:
        parse({"postgres": {"dsn": "host=h"}, "kafka": {"bootstrap": "h:1"}, **filled(fault)})
    assert secret not in "".join(traceback.format_exception(found.value))
    assert secret not in str(found.value) + found.value.hint


def _put(value: Any, secret: str) -> Any:
    return value.replace("{}", secret) if isinstance(value, str) else value


def test_a_configuration_can_be_printed(data: dict[str, Any]) -> None:
    config = parse(data)
    for text in (repr(config), str(config), f"{config.postgres!r} {config.redis!r} {config.kafka!r}"):
        assert not [secret for secret in RIGHT.values() if secret in text]


def test_secrets_come_from_files(data: dict[str, Any], tmp_path: Path) -> None:
    path, environ = tmp_path / "cdc.toml", {}
    for section in ("postgres", "kafka", "redis"):
        file = tmp_path / section
        file.write_text(f"{RIGHT[section]}\n")
        environ[f"CDC_{section.upper()}__PASSWORD_FILE"] = str(file)
    data["postgres"]["dsn"] = make_conninfo(data["postgres"]["dsn"], password="")
    data["redis"]["url"] = data["redis"]["url"].replace(f":{RIGHT['redis']}@", "@")
    del data["kafka"]["password"]
    path.write_text(toml_of(data))
    config = load(path, environ)
    held = [section.password for section in (config.postgres, config.kafka, config.redis)]
    assert [password and password.get_secret_value() for password in held] == [
        RIGHT[s] for s in ("postgres", "kafka", "redis")
    ]
    with pytest.raises(ConfigError) as found:
        load(path, {"CDC_KAFKA__PASSWORD_FILE": RIGHT["kafka"]})  # the secret itself in place of its file
    assert RIGHT["kafka"] not in "".join(traceback.format_exception(found.value))


def test_the_template_has_no_password(
    secured: Secured, secured_database: str, canaries: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    dsn = secured.dsn(make_conninfo(secured_database, user=USER, password=RIGHT["postgres"]))
    assert run(["init", "--dsn", dsn]) == 0
    printed = capsys.readouterr()
    assert RIGHT["postgres"] not in printed.out + printed.err
    assert "CDC_POSTGRES__PASSWORD_FILE" in printed.err
    for wrong in (make_conninfo(dsn, password=WRONG["postgres"]), f"postgresql://u:{WRONG['postgres']}@[h/d"):
        assert run(["init", "--dsn", wrong]) == 2
        printed = capsys.readouterr()
        assert WRONG["postgres"] not in printed.out + printed.err
        assert " → " in printed.err


def test_cdc_up_shows_a_dsn_without_its_password(servers: Endpoints, tmp_path: Path) -> None:
    shown = write_passfile(tmp_path, servers.postgres_dsn)
    password = psycopg.conninfo.conninfo_to_dict(servers.postgres_dsn)["password"]
    assert str(password) not in shown
    with psycopg.connect(shown) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert (tmp_path / "pgpass").stat().st_mode & 0o777 == 0o600
    assert str(password) not in repr(servers)


def test_an_unforeseen_error_is_told_without_its_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = RIGHT["postgres"]

    def fail(**_options: object) -> None:
        try:
            int(secret)
        except ValueError as error:
            raise RuntimeError(secret) from ExceptionGroup(secret, [error])

    monkeypatch.setattr("cdc.cli.app", fail)
    for arguments in (["status"], ["status", "--verbose"], ["status", "--json"]):
        assert run(arguments) == 70
        printed = "".join(capsys.readouterr())
        assert "RuntimeError at " in printed
        assert secret not in printed
        assert ("builtins.ValueError" in printed) is ("--verbose" in arguments)
