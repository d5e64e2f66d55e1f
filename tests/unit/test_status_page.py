"""The status page and its policy: what the browser may run is in that file, and nothing in it makes values code."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

import httpx
import pytest
from fastapi import FastAPI

from consumers.gateway.page import FILE, page, policy

TEXT = files("consumers.gateway").joinpath(FILE).read_text(encoding="utf-8")


async def test_the_policy_allows_what_is_served_and_nothing_else() -> None:
    app = FastAPI()
    app.include_router(page())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        answer = await client.get("/")
    allowed = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert allowed["default-src"] == "'none'"
    for tag in ("script", "style"):
        [inside] = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert allowed[f"{tag}-src"] == f"'sha256-{digest}'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert policy(TEXT.replace("EVERY_MS = 2000", "EVERY_MS = 1")) != policy(TEXT)


@pytest.mark.parametrize(
    "words", [r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function", r"\son\w+=", r"https?://(?!www\.w3\.org/2000/svg)"]
)  # fmt: skip
def test_values_never_become_code_and_nothing_comes_from_outside(words: str) -> None:
    assert re.search(words, TEXT) is None
