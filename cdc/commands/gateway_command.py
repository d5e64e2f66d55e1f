"""Jobs of kind `command`: a program of the operator's own, as for backfills of outside sources.

No shell. It has no input, its output is not kept; how it ended is told by its exit code, and by the last line that it
wrote to stderr, which therefore must not hold a row's value. It is ended, with all that it started, when its time is
over, when the job is cancelled and when the gateway stops.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdc import log
from cdc.embedded import leash
from cdc.errors import ConfigError, StoreError
from cdc.schedules import Command

LOG = log.get(__name__)

KEPT_BYTES = 4096  # of stderr's end
LINE_LETTERS = 300
ENDING_SECONDS = 10.0  # for an orderly end
SAME_USER = ("-1", "-1", "")


async def run(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """`{"exit_code": 0, "said": last line}`. Raises StoreError for another exit code or when it takes too long,
    ConfigError when it cannot be started."""
    command = Command.model_validate(arguments)
    process = await _started(command.argv)
    last_line = asyncio.ensure_future(_last_line(process))
    try:
        async with asyncio.timeout(command.seconds):
            code = await process.wait()
    except TimeoutError:
        raise StoreError(f"{_name(command)} was ended: it took longer than {command.seconds:g} s",
                         hint="raise seconds in its arguments, or look at what it waits for") from None  # fmt: skip
    finally:
        await _end(process)
    said = await last_line
    if code:
        raise StoreError(f"{_name(command)} ended with exit code {code}: {said or 'it said nothing'}")
    return {"exit_code": code, "said": said}


async def _started(argv: list[str]) -> Process:
    """In a process group of its own, which dies with this thread."""
    program = Path(leash.__file__)
    found = _found(argv[0])
    prefix = [sys.executable, "-I", str(program), str(os.getpid()), str(int(signal.SIGTERM)), *SAME_USER]
    return await asyncio.create_subprocess_exec(
        *prefix, found, *argv[1:], stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE, start_new_session=True
    )


def _found(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise ConfigError(f"there is no program {program}, or it may not be run", hint="name it with its whole path")
    return str(Path(path).absolute())


async def _last_line(process: Process) -> str:
    """Of stderr, cut to some letters."""
    kept = b""
    assert process.stderr is not None
    while piece := await process.stderr.read(KEPT_BYTES):
        kept = (kept + piece)[-KEPT_BYTES:]
    lines = kept.decode(errors="replace").strip().splitlines()
    return lines[-1].strip()[-LINE_LETTERS:] if lines else ""


async def _end(process: Process) -> None:
    """In order when it still runs; nothing of its group is left, also when this is cut short."""
    try:
        if process.returncode is None:
            _signal(process, signal.SIGTERM)
            async with asyncio.timeout(ENDING_SECONDS):
                await process.wait()
    except TimeoutError:
        LOG.warning("a command does not end in order, and is killed", pid=process.pid, seconds=ENDING_SECONDS)
    finally:
        _signal(process, signal.SIGKILL)


def _signal(process: Process, number: signal.Signals) -> None:
    """To all of its group; none may be left of it."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def _name(command: Command) -> str:
    return Path(command.argv[0]).name
