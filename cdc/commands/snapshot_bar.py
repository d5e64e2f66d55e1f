"""The progress bar of a running snapshot, in the terminal of `cdc reader`."""

from __future__ import annotations

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class SnapshotBar:
    """One bar a table, with rows and ETA; shown from the first chunk until the table is done."""

    def __init__(self) -> None:
        columns = (TextColumn("snapshot of {task.description}"), BarColumn(), MofNCompleteColumn())
        self._progress = Progress(*columns, TimeRemainingColumn(), transient=True)
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, table: str, rows: int, estimated: int) -> None:
        """Rows written so far; `estimated` 0 when PostgreSQL does not know."""
        if table not in self._tasks:
            self._progress.start()
            self._tasks[table] = self._progress.add_task(table, total=None)
        self._progress.update(self._tasks[table], completed=rows, total=max(rows, estimated) if estimated else None)

    def close(self) -> None:
        """Leaves the terminal clean."""
        self._progress.stop()
