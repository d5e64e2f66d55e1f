"""Debian's Chromium, headless, driven by Selenium: nothing is downloaded, the driver is the distribution's own."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = (
    "" if CHROMIUM and DRIVER else "no chromium and chromedriver in PATH: apt-get install chromium chromium-driver"
)
PHONE, DESKTOP = (390, 844), (1280, 900)


@contextmanager
def browser(*, dark: bool = False) -> Iterator[Chrome]:
    """One that keeps what the page writes to its console."""
    options = ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--lang=en"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = Chrome(options=options, service=Service(executable_path=DRIVER))
    try:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        made.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        yield made
    finally:
        made.quit()


def resize(made: Chrome, size: tuple[int, int], scale: float = 1) -> None:
    """The page's own width and height in CSS pixels; a window of Chromium is never as narrow as a phone."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": size == PHONE}
    made.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def picture(made: Chrome) -> bytes:
    """The whole page as PNG, below the fold too."""
    found: dict[str, Any] = made.execute_cdp_cmd(
        "Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True}
    )
    return base64.b64decode(found["data"])


def complaints(made: Chrome) -> list[str]:
    """What the console calls an error, since the last look."""
    return [entry["message"] for entry in made.get_log("browser") if entry["level"] == "SEVERE"]
