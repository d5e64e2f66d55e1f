"""`python -m cdc.embedded FOLDER [SERVER…]`: prints their endpoints as JSON and serves until SIGTERM or Ctrl-C."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from pathlib import Path

from cdc.embedded import NAMES, Servers
from cdc.errors import CdcError


def main(arguments: list[str]) -> int:
    """Exit code 1 with one sentence when they do not start."""
    stops = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)  # inherited by all threads: only sigwait takes them
    servers = Servers(Path(arguments[0]), only=arguments[1:] or NAMES, report=lambda line: print(line, file=sys.stderr))
    try:
        with servers as endpoints:
            print(json.dumps(dataclasses.asdict(endpoints)), flush=True)
            signal.sigwait(stops)
    except CdcError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
