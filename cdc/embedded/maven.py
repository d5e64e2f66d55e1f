"""Jars that a pom names, fetched by mvn once and kept in the cache of this user."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from cdc.errors import PreconditionError


def fetched(pom: Path, folder: Path, what: str, report: Callable[[str], None]) -> Path:
    """`folder`, filled with the jars of the pom's runtime dependencies unless it is there already.

    `what` names them for a person ("Kafka 4.3.1"). Raises PreconditionError when they cannot be had.
    """
    if folder.exists():
        return folder
    maven = shutil.which("mvn")
    if maven is None:
        raise PreconditionError(
            f"the jars of {what} are not in {folder}, and there is no mvn to fetch them",
            hint=f"install Maven and run `make setup`, or copy the libs folder of {what} to {folder}",
        )
    report(f"Fetching the jars of {what} into {folder} with mvn, once")
    draft = folder.with_name(f"{folder.name}.{os.getpid()}")
    target = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={draft}"]
    done = subprocess.run(
        [maven, "-B", "-q", "-f", str(pom), *target], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        raise PreconditionError(
            f"mvn could not fetch the jars of {what}: {(done.stdout + done.stderr).strip()[-2000:]}",
            hint="see to the network, or to Maven's settings.xml",
        )
    draft.rename(folder)
    return folder
