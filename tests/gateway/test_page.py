"""The status page in a real browser: true figures at each width, what is down is down, a row's text is only text."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from typing import Any

import pytest
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from cdc.embedded import Server
from tests.command_line import CommandLine
from tests.gateway.browser import DESKTOP, MISSING, PHONE, browser, complaints, resize
from tests.gateway_rig import PIPELINE, counted, execute, insert, running
from tests.waiting import until, wait_until

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
SCRIPT = "<script>window.ran = 1</script><img src=x onerror='window.ran = 2'>"

WIDTHS = "const page = document.documentElement; return [window.innerWidth, page.clientWidth, page.scrollWidth]"


@pytest.fixture
def chrome() -> Iterator[Chrome]:
    with browser() as made:
        yield made


async def test_the_page(
    command: CommandLine, data: dict[str, Any], own_redis: tuple[str, Server], chrome: Chrome
) -> None:
    """One pipeline for all of it."""
    insert(data, 120)
    execute(data, "INSERT INTO memories (user_id, content) VALUES (%s, %s)", [SCRIPT, f"herons {SCRIPT}"])
    async with running(command, data, *PIPELINE) as client:
        await until(lambda: counted(client, 121), "121 rows everywhere")
        chrome.get(str(client.base_url))
        for size in (PHONE, DESKTOP):
            resize(chrome, size)
            wait_until(lambda: text(chrome, "state") == "in step", "in step")
            wait_until(lambda: figures(chrome) == {"postgres": 121, "redis": 121, "faiss": 121}, "true counts")
            assert counts(chrome) == {"postgres": "121", "redis": "121", "faiss": "121"}
            window, inside, content = chrome.execute_script(WIDTHS)
            assert window == size[0]
            assert content <= inside, "it scrolls sideways"
        nothing_runs(chrome)
        finds_what_was_just_written(chrome, data)
        assert complaints(chrome) == []
        assert chrome.execute_script("return document.querySelectorAll('[src], link[href^=http]').length") == 0
        own_redis[1].stop()
        try:
            wait_until(lambda: "down" in shown(chrome, "redis"), "Redis is down")
            assert "cannot be reached" in shown(chrome, "redis")
            assert "redis" not in figures(chrome)  # and never 0
            assert counts(chrome) == {"postgres": "122", "faiss": "122"}
            assert text(chrome, "state") == "degraded"
            assert "redis is down" in text(chrome, "reasons")
        finally:
            own_redis[1].start()
        wait_until(lambda: "redis" in figures(chrome), "Redis is up")
    wait_until(lambda: text(chrome, "state") == "the gateway does not answer", "the page says that it knows nothing")


def nothing_runs(chrome: Chrome) -> None:
    """A row with a script is text, and the browser would refuse to run it in any case."""
    search(chrome, "herons")
    wait_until(lambda: SCRIPT in text(chrome, "hits"), "the row with a script")
    assert chrome.execute_script("return window.ran") is None
    chrome.execute_script("document.body.insertAdjacentHTML('beforeend', arguments[0])", SCRIPT)
    chrome.execute_script(
        "const made = document.createElement('script'); made.textContent = 'window.ran = 3'; document.body.append(made)"
    )
    wait_until(lambda: bool(complaints(chrome)), "the policy refuses what is not of the page")
    assert chrome.execute_script("return window.ran") is None
    chrome.execute_script("document.querySelector('img').remove()")


def finds_what_was_just_written(chrome: Chrome, data: dict[str, Any]) -> None:
    """The search box finds a row that committed while its text stood there; by the keyboard alone."""
    word = f"kingfisher{secrets.token_hex(4)}"
    search(chrome, word)
    execute(data, "INSERT INTO memories (user_id, content) VALUES ('ann', %s)", [f"a {word} by the river"])
    committed = time.monotonic()
    wait_until(lambda: f"a {word} by the river" in text(chrome, "hits"), "the row that was just written")
    print(f"found {time.monotonic() - committed:.2f} s after its commit")
    assert "version" in text(chrome, "hits")


def search(chrome: Chrome, words: str) -> None:
    box = chrome.find_element(By.ID, "query")
    box.clear()
    box.send_keys(words, Keys.ENTER)


def text(chrome: Chrome, name: str) -> str:
    return str(chrome.find_element(By.ID, name).text)


def shown(chrome: Chrome, place: str) -> str:
    """The card of a place; "" while it is being drawn."""
    try:
        return str(chrome.find_element(By.CSS_SELECTOR, f"[data-place={place}]").text)
    except StaleElementReferenceException:
        return ""


def figures(chrome: Chrome) -> dict[str, int]:
    """Records by place, as the path shows them."""
    script = (
        "return [...document.querySelectorAll('[data-records]')].map("
        "one => [one.closest('[data-place]').dataset.place, Number(one.dataset.records)])"
    )
    return dict(chrome.execute_script(script))


def counts(chrome: Chrome) -> dict[str, str]:
    """Records by place, as the table shows them."""
    script = (
        "return [...document.querySelectorAll('[data-count]')].map("
        "one => [one.dataset.count, one.firstChild.textContent])"
    )
    return dict(chrome.execute_script(script))
