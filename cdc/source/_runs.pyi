from collections.abc import Callable
from typing import Any

from cdc.source.events import Table

def drain(get: Callable[[int], tuple[int, Any]], limit: int, payloads: list[bytes]) -> tuple[int, int, int]: ...

class Layout:
    table: Table
    def __init__(self, table: Table, key_literals: tuple[bytes, ...], row_literals: tuple[bytes, ...]) -> None: ...

class Target:
    ordinal: int
    nbytes: int
    def __init__(
        self, headers: tuple[str, str], timestamp: int, position: bytes, vector: bytes, tail: bytes, end: bytes
    ) -> None: ...
    def bound(self, records: list[Any], ordinal: int, rows: int, room: int, limit: int) -> None: ...

class Run:
    layout: Layout
    def __init__(
        self,
        layout: Layout,
        head: bytes,
        places: tuple[int, ...],
        hows: tuple[str, ...],
        calls: tuple[Callable[[bytes], Any] | None, ...],
        *rest: Any,
    ) -> None: ...
    def take(self, payloads: list[bytes], start: int, target: Target) -> int: ...

class Wal2jsonRun(Run): ...
class PgoutputRun(Run): ...

class Result(Run):
    def rows(
        self, get: Callable[[int, int], bytes | None], count: int, version: int, rows: list[tuple[bytes, bytes, Any]]
    ) -> int: ...
    def copied(
        self, get: Callable[[int], tuple[int, Any]], version: int, pieces: list[bytes]
    ) -> tuple[int, int, bytes, int]: ...
