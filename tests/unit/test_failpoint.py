"""Failpoints: each is where its name says, each does what it is armed with, and a misspelt one is refused."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from cdc.errors import ConfigError
from cdc.failpoint import POINTS, VARIABLE, parse

ROOT = Path(__file__).parents[2]
CHILD = "from cdc.failpoint import failpoint\nfor n in range(9):\n    print(n, flush=True)\n    failpoint('{name}')\n"


def test_every_point_is_in_the_code_exactly_once() -> None:
    sources = [path for part in ("cdc", "consumers") for path in (ROOT / part).rglob("*.py")]
    found = Counter(name for path in sources for name in re.findall(r'\bfailpoint\("([^"]+)"\)', path.read_text()))
    assert found == Counter(dict.fromkeys(POINTS, 1))


def child(rule: str, name: str = "writer.before-commit") -> subprocess.Popen[bytes]:
    """Passes the failpoint nine times and says how often."""
    environment = {**os.environ, VARIABLE: rule}
    command = [sys.executable, "-c", CHILD.format(name=name)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_kill_at_the_nth_time() -> None:
    process = child("writer.before-commit=kill@3")
    output, _ = process.communicate()
    assert (process.returncode, output) == (-signal.SIGKILL, b"0\n1\n2\n")


def test_stop_hangs_until_it_goes_on() -> None:
    process = child("writer.before-commit=stop")
    assert os.waitpid(process.pid, os.WUNTRACED)[1] == 0x7F | signal.SIGSTOP << 8
    process.send_signal(signal.SIGCONT)
    output, _ = process.communicate()
    assert (process.returncode, output.count(b"\n")) == (0, 9)


def test_error_is_that_of_a_server_that_is_away() -> None:
    _, errors = child("writer.before-commit=error@2").communicate()
    assert b"ConnectError: failpoint writer.before-commit" in errors


def test_another_point_does_nothing() -> None:
    process = child("writer.before-commit=kill", "writer.after-commit")
    assert process.communicate()[0].count(b"\n") == 9


@pytest.mark.parametrize("rule", ["writer.before-comit=kill", "writer.before-commit", "writer.before-commit=kill@0"])
def test_a_misspelt_rule_is_refused(rule: str) -> None:
    with pytest.raises(ConfigError, match="is no failpoint"):
        parse(rule)
