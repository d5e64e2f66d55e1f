"""`python -m cdc.embedded FOLDER [SERVER…]`: prints their endpoints as JSON and serves until SIGTERM or Ctrl-C.

`python -m cdc.embedded --prepare` does once what makes later starts quick: Kafka's jars and their class archive.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import tempfile
from pathlib import Path

from cdc.embedded import NAMES, Servers, programs
from cdc.errors import CdcError


def main(arguments: list[str]) -> int:
    """Exit code 1 with one sentence when they do not start."""
    try:
        return prepare() if arguments == ["--prepare"] else serve(Path(arguments[0]), arguments[1:])
    except CdcError as error:
        print(error, file=sys.stderr)
        return 1


def serve(data: Path, names: list[str]) -> int:
    """Until a signal comes."""
    stops = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)  # inherited by all threads: only sigwait takes them
    with Servers(data, only=names or NAMES, report=report) as endpoints:
        print(json.dumps(dataclasses.asdict(endpoints)), flush=True)
        signal.sigwait(stops)
    return 0


def prepare() -> int:
    """Starts Kafka for a moment unless its class archive is there."""
    archive = programs.kafka("auto", report).archive
    if archive is not None and not archive.exists():
        report("Starting Kafka once, to keep its classes ready for quick starts")
        with tempfile.TemporaryDirectory() as data, Servers(Path(data), only=("kafka",)):
            pass
    return 0


def report(line: str) -> None:
    """For a person, beside the JSON."""
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
