"""The index's place on disk: generations, the pointer to the live one, locks, and the snapshots of one generation.

    <path>/CURRENT                        "gen-2 gen-1": the live generation, and the one it replaced
    <path>/gen-2/LOCK                     held by the process that fills it
    <path>/gen-2/snapshot-17/…            the last few; numbers grow
    <path>/gen-2/damaged-snapshot-16/…    set aside, for a person to look at

A rebuild fills another generation beside the live one and moves the pointer: one rename, which a running consumer
sees at its next check, and the next start at once.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from cdc import log
from cdc.errors import DecodeError, StoreError
from consumers.faiss.durable import replace_text, sync_folder
from consumers.faiss.snapshot import PREFIX, TEMPORARY, Kindred, Manifest, read_manifest

LOG = log.get(__name__)
GENERATION = "gen-"
DAMAGED = "damaged-"
POINTER = "CURRENT"


class Home:
    """The pointer and the generations under one path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def current(self) -> tuple[str | None, str | None]:
        """`(live, replaced)` generation; None where there is none. Raises StoreError when the pointer is unreadable."""
        try:
            names = (self.path / POINTER).read_text(errors="replace").split()
        except FileNotFoundError:
            return None, None
        if not 1 <= len(names) <= 2 or not all(_number(name, GENERATION) is not None for name in names):
            raise StoreError(
                f"{self.path / POINTER} does not name a generation",
                hint=f"remove it, and the newest generation of {self.path} is taken",
            )
        return names[0], names[1] if len(names) == 2 else None

    def live(self) -> str:
        """The live generation, decided here when nothing is: the newest there is, or the first."""
        live, _replaced = self.current()
        if live is None:
            live = f"{GENERATION}{max(self._numbers(), default=1)}"
            self.point(live, None)
        return live

    def point(self, live: str, replaced: str | None) -> None:
        """Moves the pointer, durably and at once."""
        self.path.mkdir(parents=True, exist_ok=True)
        replace_text(self.path / POINTER, " ".join([live, replaced] if replaced else [live]))

    def fresh(self) -> str:
        """A generation that is not there yet; leftovers of broken rebuilds are cleared away."""
        self.live()
        self.clear()
        return f"{GENERATION}{max(self._numbers(), default=1) + 1}"

    def clear(self) -> None:
        """Removes generations that are neither live nor kept for a rollback nor in use by a process."""
        keep = set(self.current())
        if keep == {None}:
            return  # nobody knows which one is live
        for number in self._numbers():
            name = f"{GENERATION}{number}"
            if name not in keep:
                generation = Generation(self.path / name)
                if generation.try_lock():
                    shutil.rmtree(generation.path)
                    generation.unlock()

    def _numbers(self) -> list[int]:
        return sorted(_numbers(self.path, GENERATION))


class Generation:
    """One generation's folder, owned by whoever holds its lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def lock(self) -> None:
        """Raises StoreError when another process, or another store in this one, has it."""
        if not self.try_lock():
            owner = (self.path / "LOCK").read_text(errors="replace").strip()
            raise StoreError(
                f"the index in {self.path} is in use by process {owner or 'unknown'}",
                hint="stop that process, or set faiss.path to another folder",
            )

    def try_lock(self) -> bool:
        """False when it is taken. Raises StoreError when the folder cannot be written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path / "LOCK", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StoreError(
                f"the index cannot be kept in {self.path}: {error.strerror}",
                hint="set faiss.path to a folder this user may write",
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        self.unlock()
        self._lock = handle
        return True

    def unlock(self) -> None:
        """Lets others have it; without effect when it is not held."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def lost(self) -> bool:
        """True when the folder is not the one that was locked: removed, or another put in its place."""
        if self._lock is None:
            return True
        try:
            return not os.path.samestat(os.stat(self.path / "LOCK"), os.fstat(self._lock))
        except FileNotFoundError:
            return True

    def tidy(self) -> None:
        """Removes what a crash left half written."""
        for leftover in self.path.glob(f"{TEMPORARY}*"):
            shutil.rmtree(leftover)

    def next_snapshot(self) -> Path:
        """Where the next snapshot goes; numbers of damaged ones are not used again."""
        numbers = [*_numbers(self.path, PREFIX), *_numbers(self.path, DAMAGED + PREFIX)]
        return self.path / f"{PREFIX}{max(numbers, default=0) + 1}"

    def usable(self, ours: Kindred) -> Iterator[tuple[Path, Manifest]]:
        """Snapshots with intact files, newest first. Damaged ones are named and set aside, foreign ones passed over."""
        for number in sorted(_numbers(self.path, PREFIX), reverse=True):
            folder = self.path / f"{PREFIX}{number}"
            try:
                manifest = read_manifest(folder)
            except DecodeError as error:
                self.set_aside(folder, error)
                continue
            difference = ours.differs(manifest.kindred)
            if difference is None:
                yield folder, manifest
            else:
                LOG.warning(
                    f"a snapshot is not of this index, so it is not used: {difference}",
                    snapshot=str(folder), hint="restore the config to use it; else everything is replayed",
                )  # fmt: skip

    def set_aside(self, folder: Path, error: DecodeError) -> None:
        """Renames a damaged snapshot."""
        LOG.error("a snapshot is damaged and set aside", snapshot=str(folder), reason=error.message, hint=error.hint)
        aside = folder.with_name(f"{DAMAGED}{folder.name}")
        if aside.exists():
            shutil.rmtree(aside)
        folder.rename(aside)
        sync_folder(self.path)

    def prune(self, keep: int) -> None:
        """Keeps the last few snapshots, and as many damaged ones."""
        for prefix in (PREFIX, DAMAGED + PREFIX):
            for number in sorted(_numbers(self.path, prefix))[:-keep]:
                shutil.rmtree(self.path / f"{prefix}{number}")


def _numbers(folder: Path, prefix: str) -> Iterator[int]:
    """The numbers of a folder's entries `<prefix><number>`."""
    if folder.is_dir():
        for entry in folder.iterdir():
            number = _number(entry.name, prefix)
            if number is not None:
                yield number


def _number(name: str, prefix: str) -> int | None:
    digits = name.removeprefix(prefix)
    return int(digits) if digits != name and digits.isascii() and digits.isdecimal() else None
