"""Who runs PostgreSQL: it refuses root, so root lends it an account, and a folder which that account can reach."""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from cdc.errors import PreconditionError

NAMES = ("postgres", "nobody")  # Debian's package makes the first, every system has the second
SHARED = Path("/var/tmp")  # reachable for every user, and kept over a reboot


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this machine."""

    name: str
    uid: int
    gid: int

    def reaches(self, path: Path) -> bool:
        """True when every folder above `path`, as far as it exists, lets the account through."""
        return all(self._enters(folder) for folder in path.resolve().parents if folder.exists())

    def _enters(self, folder: Path) -> bool:
        status = folder.stat()
        if status.st_uid == self.uid:
            return bool(status.st_mode & stat.S_IXUSR)
        if status.st_gid == self.gid:
            return bool(status.st_mode & stat.S_IXGRP)
        return bool(status.st_mode & stat.S_IXOTH)

    def own(self, folder: Path) -> None:
        """Makes the folder, for this account only."""
        folder.mkdir(mode=0o700, exist_ok=True)
        os.chown(folder, self.uid, self.gid)


def for_postgres() -> Account | None:
    """None: the present user will do. Raises PreconditionError when root finds nobody to lend."""
    if os.geteuid() != 0:
        return None
    for name in NAMES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    raise PreconditionError(
        "PostgreSQL does not run as root, and there is neither a user postgres nor nobody",
        hint="start as an ordinary user, or add one: `useradd --system postgres`",
    )


def shared_folder(key: Path) -> Path:
    """A folder of ours that every user can reach, always the same for `key`; not made yet."""
    ours = SHARED / f"memory-cdc-{os.geteuid()}"
    ours.mkdir(mode=0o755, exist_ok=True)
    status = ours.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise PreconditionError(f"{ours} belongs to somebody else", hint=f"remove {ours}")
    place = key.parent.resolve() / key.name  # `key` itself may become a link to the folder
    return ours / hashlib.sha256(str(place).encode()).hexdigest()[:16]


def reachable_copy(account: Account, root: Path, parts: tuple[str, ...], version: str) -> Path:
    """`root`, or a copy of its `parts` where the account can reach them; made once for a version."""
    if account.reaches(root / parts[0] / "bin"):
        return root
    copy = shared_folder(root).with_name(f"programs-{version}")
    if not copy.exists():
        draft = shared_folder(root).with_name(f"programs-{version}.{os.getpid()}")
        for part in parts:
            shutil.copytree(root / part, draft / part, symlinks=True)
        draft.rename(copy)
    return copy
