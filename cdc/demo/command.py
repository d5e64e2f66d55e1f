"""The other commands, run as a person would: what they print as JSON, while their progress goes to our stderr."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from cdc.errors import StoreError

DIFFERENCES = 1  # exit code of a `cdc verify` that found some


async def cdc(config: Path, *arguments: str, quiet: bool) -> dict[str, Any]:
    """`cdc ARGUMENTS --json`. Raises StoreError when it fails; differences are no failure."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cdc.cli", "--config", str(config), *arguments, "--json"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE if quiet else None,
    )
    try:
        output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode not in (0, DIFFERENCES):
        last = (errors or output).decode(errors="replace").strip().splitlines()[-1:]
        raise StoreError(f"`cdc {' '.join(arguments)}` ended with {process.returncode}: {' '.join(last)}")
    return dict(json.loads(output))
