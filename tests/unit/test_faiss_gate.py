"""Many readers or one writer; neither side starves the other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from consumers.faiss.gate import Gate

PATIENCE = 30  # seconds until a test that hangs fails


def started(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def until(gate: Gate, condition: Callable[[], bool]) -> None:
    """Waits until other threads have queued up; each wait lets go of the gate's own lock, so that they can."""
    with gate._changed:
        for _ in range(PATIENCE * 1000):
            if condition():
                return
            gate._changed.wait(0.001)
    raise AssertionError("the others never came")


def test_readers_share_and_writers_do_not() -> None:
    gate, inside, most, wrong = Gate(), [0, 0], [0], []
    guard = threading.Lock()

    def enter(kind: int, by: int) -> None:
        with guard:
            inside[kind] += by
            most[0] = max(most[0], inside[0])
            if inside[1] > 1 or (inside[1] and inside[0]):
                wrong.append(tuple(inside))

    def read(_number: int) -> None:
        with gate.reading():
            enter(0, 1)
            enter(0, -1)

    def write(_number: int) -> None:
        with gate.writing():
            enter(1, 1)
            enter(1, -1)

    with ThreadPoolExecutor(8) as pool:
        for number in range(4000):
            pool.submit(write if number % 5 == 0 else read, number)
    assert wrong == []
    both = threading.Barrier(2, timeout=PATIENCE)

    def meet() -> None:
        with gate.reading():
            both.wait()

    threads = [started(meet), started(meet)]  # passes only if both are in at once
    for thread in threads:
        thread.join(PATIENCE)
    assert not both.broken


def test_a_waiting_writer_goes_before_later_readers_and_queued_readers_before_the_next_writer() -> None:
    gate, order = Gate(), []
    first_read, first_write = threading.Event(), threading.Event()

    def reader(name: str, hold: threading.Event | None = None) -> Callable[[], None]:
        def run() -> None:
            with gate.reading():
                order.append(name)
                if hold is not None:
                    hold.wait(PATIENCE)

        return run

    def writer(name: str, hold: threading.Event | None = None) -> Callable[[], None]:
        def run() -> None:
            with gate.writing():
                order.append(name)
                if hold is not None:
                    hold.wait(PATIENCE)

        return run

    threads = [started(reader("reader 1", first_read))]
    until(gate, lambda: gate._reading == 1)
    threads.append(started(writer("writer 1", first_write)))
    until(gate, lambda: gate._writers == 1)
    threads.append(started(reader("reader 2")))
    until(gate, lambda: gate._queued == 1)
    first_read.set()
    until(gate, lambda: gate._writing)
    threads.append(started(writer("writer 2")))
    until(gate, lambda: gate._writers == 2)
    first_write.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert order == ["reader 1", "writer 1", "reader 2", "writer 2"]
