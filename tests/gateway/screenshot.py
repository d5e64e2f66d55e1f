"""`python -m tests.gateway.screenshot` takes docs/status-page.png and docs/status-page-phone.png of a live pipeline.

Servers of its own, the texts of Python's standard library as memories, written, changed and deleted for some minutes;
a verify. Looks in the dark and with Redis stopped go to the folder that --more names.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import tempfile
import threading
from pathlib import Path
from typing import Any

import httpx
import psycopg
from selenium.webdriver.common.by import By

from cdc.demo.texts import Text, standard_library
from cdc.embedded import Servers
from cdc.migrations import migrate
from tests.command_line import CommandLine, free_ports
from tests.gateway.browser import DESKTOP, MISSING, PHONE, browser, picture, resize
from tests.gateway_rig import PIPELINE, TABLES, running
from tests.pipeline import settings
from tests.waiting import until, wait_until

DOCS = Path(__file__).parents[2] / "docs"
KEY = "only for these pictures"
ASKED = "decode a JSON document"
INSERT = "INSERT INTO memories (user_id, content) VALUES (%s, %s)"
UPDATE = "UPDATE memories SET content = content || '.' WHERE id IN (SELECT id FROM memories ORDER BY random() LIMIT 5)"


def main() -> None:
    """Everything, from the servers on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="of writing before the pictures")
    parser.add_argument("--more", type=Path, help="a folder for the looks that are not kept")
    asked = parser.parse_args()
    if MISSING:
        raise SystemExit(MISSING)
    with tempfile.TemporaryDirectory() as name:
        servers = Servers(Path(name) / "servers", report=print)
        try:
            endpoints = servers.start()
            migrate(endpoints.postgres_dsn)
            data = settings(endpoints, endpoints.postgres_dsn, Path(name), tables=TABLES, faiss={"metric": "cosine"},
                            **free_ports())  # fmt: skip
            data["gateway"]["admin_key"] = KEY
            data["postgres"]["heartbeat_seconds"] = 1.0
            asyncio.run(shown(servers, CommandLine(Path(name), data), data, asked))
        finally:
            servers.erase()


async def shown(servers: Servers, command: CommandLine, data: dict[str, Any], asked: argparse.Namespace) -> None:
    """Writes, verifies, and takes the pictures."""
    async with running(command, data, *PIPELINE) as client:
        done = threading.Event()
        writing = asyncio.create_task(asyncio.to_thread(write, data["postgres"]["dsn"], standard_library(), done))
        headers = {"Authorization": f"Bearer {KEY}"}
        await asyncio.sleep(60 * asked.minutes)
        await until(lambda: verified(client, headers), "a verify that finds no difference", 300)
        await asyncio.to_thread(look, str(client.base_url), DOCS)
        if asked.more is not None:
            look(str(client.base_url), asked.more, dark=True)
            servers["redis"].stop()
            look(str(client.base_url), asked.more, well=False, prefix="down-")
            servers["redis"].start()
        done.set()
        await writing


async def verified(client: httpx.AsyncClient, headers: dict[str, str]) -> bool:
    """One more verify, to its end; on a machine without breath some do not come so far."""
    job = (await client.post("/admin/verify", json={}, headers=headers)).json()["id"]
    while (state := (await client.get(f"/jobs/{job}", headers=headers)).json()["state"]) in ("queued", "running"):
        await asyncio.sleep(0.2)
    return bool(state == "succeeded")


def write(dsn: str, texts: list[Text], done: threading.Event) -> None:
    """A steady stream until then: a dozen a second come, each with five that are touched, and one goes."""
    with psycopg.connect(dsn, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.executemany(INSERT, [(text.kind, text.content) for text in texts[:4000]])
        for text in itertools.cycle(texts[4000:]):
            if done.wait(0.08):
                return
            cursor.execute(INSERT, [text.kind, text.content])
            cursor.execute(UPDATE)
            cursor.execute("DELETE FROM memories WHERE id = (SELECT id FROM memories LIMIT 1) AND random() < 0.1")


def look(address: str, folder: Path, *, dark: bool = False, well: bool = True, prefix: str = "") -> None:
    """Both widths, once the page has its rates and its hits."""
    with browser(dark=dark) as chrome:
        for name, size, scale in (("status-page", DESKTOP, 1.0), ("status-page-phone", PHONE, 1.0)):
            resize(chrome, size, scale)
            chrome.get(address)
            chrome.find_element(By.ID, "query").send_keys(ASKED)
            wait_until(lambda: not well or chrome.find_element(By.ID, "state").text == "in step", "in step")
            wait_until(lambda: bool(chrome.find_elements(By.CSS_SELECTOR, "#hits li")), "hits")
            wait_until(lambda: not well or "records/s" in chrome.find_element(By.ID, "path").text, "the path's rates")
            wait_until(lambda: not well or not chrome.find_elements(By.CSS_SELECTOR, ".wire.broken"), "all at work")
            (folder / f"{prefix}{name}{'-dark' if dark else ''}.png").write_bytes(picture(chrome))


if __name__ == "__main__":
    main()
