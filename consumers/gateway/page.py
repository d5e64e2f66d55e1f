"""`GET /`: the status page, one file without any outside resource.

The browser runs and styles what is in that file and nothing else: its script and style are allowed by their hashes, all
else is refused. (W3C, "Content Security Policy Level 3")
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse

FILE = "page.html"


def page() -> APIRouter:
    """`GET /`."""
    router = APIRouter(include_in_schema=False)
    text = files("consumers.gateway").joinpath(FILE).read_text(encoding="utf-8")
    headers = {
        "Content-Security-Policy": policy(text),
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }

    @router.get("/")
    async def show() -> Response:
        """The page."""
        return HTMLResponse(text, headers=headers)

    return router


def policy(text: str) -> str:
    """The page's own script and style, and the gateway it came from."""
    script, style = (_hashes(text, tag) for tag in ("script", "style"))
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hashes(text: str, tag: str) -> str:
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in found)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
