"""The index's place on disk: generations, the pointer to the live one, locks, and the snapshots of one generation.

    <path>/CURRENT                        "gen-2 gen-1 <seal>": the live generation, and the one it replaced
    <path>/gen-2/LOCK                     held by the process that fills it
    <path>/gen-2/snapshot-17/…            the last few; numbers grow
    <path>/gen-2/damaged-snapshot-16/…    set aside, for a person to look at

A rebuild fills another generation beside the live one and moves the pointer: one rename, which a running consumer
sees at its next check, and the next start at once. A pointer that is damaged is set aside, and the newest generation
with a snapshot taken: whichever it is, it says itself from where it has to be replayed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from cdc import log
from cdc.errors import DecodeError, StoreError
from consumers.faiss.durable import make_folder, remove, replace_text, sync_folder
from consumers.faiss.snapshot import PREFIX, TEMPORARY, Kindred, Manifest, read_manifest

LOG = log.get(__name__)
GENERATION = "gen-"
DAMAGED = "damaged-"
POINTER = "CURRENT"
POINTER_BYTES = 1000  # far more than two names and a seal


class Home:
    """The pointer and the generations under one path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def current(self) -> tuple[str | None, str | None]:
        """`(live, replaced)` generation; None where there is none. Raises StoreError when the pointer is damaged."""
        try:
            words = _read(self.path / POINTER).split(" ")
        except FileNotFoundError:
            return None, None
        names = words[:-1]
        sealed = words[-1] == _seal(names)
        if not sealed or not 1 <= len(names) <= 2 or any(_number(name, GENERATION) is None for name in names):
            raise StoreError(
                f"{self.path / POINTER} is damaged",
                hint="start the consumer: it sets the file aside and takes the newest index",
            )
        return names[0], names[1] if len(names) == 2 else None

    def live(self) -> str:
        """The live generation, decided here when nothing is: the newest there is, or the first."""
        live = self.sound()
        if live is None:
            numbers = self._numbers()
            filled = [number for number in numbers if list(_numbers(self.path / f"{GENERATION}{number}", PREFIX))]
            live = f"{GENERATION}{max(filled or numbers, default=1)}"
            self.point(live, None)
        return live

    def sound(self) -> str | None:
        """The live generation; None where there is no pointer, or one that is damaged, which is set aside."""
        try:
            return self.current()[0]
        except StoreError as error:
            LOG.error("the pointer to the live index is damaged and set aside", reason=error.message)  # noqa: TRY400
            aside = self.path / f"{DAMAGED}{POINTER}"
            remove(aside)
            (self.path / POINTER).rename(aside)
            return None

    def point(self, live: str, replaced: str | None) -> None:
        """Moves the pointer, durably and at once."""
        make_folder(self.path)
        names = [live, replaced] if replaced else [live]
        replace_text(self.path / POINTER, " ".join([*names, _seal(names)]))

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
                    remove(generation.path)
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
        """False when it is taken. Raises OSError when the folder cannot be written."""
        make_folder(self.path)
        handle = os.open(self.path / "LOCK", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        self.unlock()
        self._lock = handle
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
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
            remove(leftover)

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
        remove(aside)
        folder.rename(aside)
        sync_folder(self.path)

    def prune(self, keep: int) -> None:
        """Keeps the last few snapshots, and as many damaged ones."""
        for prefix in (PREFIX, DAMAGED + PREFIX):
            for number in sorted(_numbers(self.path, prefix))[:-keep]:
                remove(self.path / f"{prefix}{number}")


def _read(pointer: Path) -> str:
    """Its text; of something else than a short file, nothing. Raises FileNotFoundError."""
    found = pointer.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > POINTER_BYTES:
        return ""
    return pointer.read_text(errors="replace")


def _seal(names: list[str]) -> str:
    """So that a name that was cut or bent is not taken for another generation."""
    return hashlib.sha256(" ".join(names).encode(errors="replace")).hexdigest()[:16]


def _numbers(folder: Path, prefix: str) -> Iterator[int]:
    """The numbers of a folder's entries `<prefix><number>`."""
    if folder.is_dir():
        for entry in folder.iterdir():
            number = _number(entry.name, prefix)
            if number is not None:
                yield number


def _number(name: str, prefix: str) -> int | None:
    digits = name.removeprefix(prefix)
    return int(digits) if digits != name and digits.isascii() and digits.isdecimal() and len(digits) < 10 else None
