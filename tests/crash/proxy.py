"""A TCP proxy that breaks: it stands between the processes under test and one server.

It runs in a thread and event loop of its own, so that synchronous and asynchronous tests use it alike, and so that a
loop under test that hangs does not hang it. Directions: "up" is client to server, "down" server to client.

| fault | the connections there are | new connections | at `heal` |
|---|---|---|---|
| `cut` | FIN to both sides | refused by the kernel | accepted again |
| `reset` | RST to both sides | accepted, then RST | accepted again |
| `black_hole` | bytes are taken, acknowledged and lost; no FIN | taken, never answered | what lost bytes is reset |
| `drop` | packets are lost: nothing is acknowledged, keepalives neither | SYNs are lost | TCP sends again, goes on |
| `half_open` | one side gets RST, the other hears nothing more | work | what is left is reset |
| `slow`, `delay` | fewer bytes a second; later | the same | at once |
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Literal

from tests.crash.proxy_link import Line, Link, Side, end_connection, lose_packets, new_socket

Direction = Literal["up", "down", "both"]

HOST = "127.0.0.1"
BACKLOG = 512
CALL_SECONDS = 10.0


class Proxy:
    """`with Proxy("127.0.0.1", 5432) as proxy:` then connect to `proxy.address`. `port` stays the same over all faults.

    Counters since the start: `opened` connections that were accepted, `bytes_up` and `bytes_down` that were delivered;
    `connections` are those a client holds now. A target that is down closes the client's connection. `target` may be
    set later, when the server behind has to know the proxy first.
    """

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.opened = self.bytes_up = self.bytes_down = 0
        self._lines = {"up": Line(self._count_up), "down": Line(self._count_down)}
        self._links: set[Link] = set()
        self._refuse = False
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{port}", daemon=True)
        self._reserved = _bound(0)  # keeps the port ours while nothing listens
        self.port: int = self._reserved.getsockname()[1]

    @property
    def address(self) -> str:
        """host:port for clients."""
        return f"{HOST}:{self.port}"

    @property
    def connections(self) -> int:
        """Connections a client holds now."""
        return sum(not link.orphaned for link in self._links)

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._call(self._listen)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(CALL_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._reserved.close()

    def cut(self) -> None:
        """The server's machine goes down in order: FIN everywhere, new connections are refused."""

        def leave() -> None:
            self._deafen()
            self._end(abort=False)

        self._call(leave)

    def reset(self) -> None:
        """RST on every connection, also on new ones, which `opened` counts."""

        def break_all() -> None:
            self._refuse = True
            self._end(abort=True)

        self._call(break_all)

    def black_hole(self, direction: Direction = "both") -> None:
        """A middlebox or a hung machine: its kernel acknowledges, nobody answers."""
        self._call(lambda: self._set(direction, swallow=True))

    def drop(self) -> None:
        """A cable pulled: packets are lost both ways, so that TCP itself notices nothing but silence."""

        def pull() -> None:
            self._lose(True)
            self._set("both", hold=True)

        self._call(pull)

    def half_open(self, dead: Side) -> None:
        """The `dead` side of every present connection is gone; the other one is not told. New ones work."""
        self._call(lambda: self._orphan(dead))

    def slow(self, bytes_per_second: int, direction: Direction = "both") -> None:
        """A narrow line, each connection and direction for itself; 125 000 is 1 Mbit/s."""
        self._call(lambda: self._set(direction, rate=bytes_per_second))

    def delay(self, seconds: float, direction: Direction = "both") -> None:
        """A long line: each byte comes later, as many a second as before."""
        self._call(lambda: self._set(direction, delay=seconds))

    def heal(self) -> None:
        """Takes all faults back."""
        self._call(self._heal)

    def _heal(self) -> None:
        self._refuse = False
        for link in [link for link in self._links if link.tainted]:
            link.close(abort=True)
        self._lose(False)
        self._set("both")
        if self._listener is None:
            self._listen()

    def _count_up(self, size: int) -> None:
        self.bytes_up += size

    def _count_down(self, size: int) -> None:
        self.bytes_down += size

    def _set(
        self, direction: Direction, *, swallow: bool = False, hold: bool = False, rate: int = 0, delay: float = 0.0
    ) -> None:
        for name, line in self._lines.items():
            if direction in (name, "both"):
                line.set(swallow=swallow, hold=hold, rate=rate, delay=delay)

    def _lose(self, lost: bool) -> None:
        ends = [end for link in self._links for end in link.ends]
        for each in ends if self._listener is None else [*ends, self._listener]:
            lose_packets(each, lost)

    def _listen(self) -> None:
        self._listener = _bound(self.port)
        self._listener.listen(BACKLOG)
        self._accepting = self._loop.create_task(self._accept(self._listener))

    def _deafen(self) -> None:
        if self._accepting is not None and self._listener is not None:
            self._accepting.cancel()
            self._loop.remove_reader(self._listener)
            self._listener.close()
        self._listener = self._accepting = None

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            client, _ = await self._loop.sock_accept(listener)
            self.opened += 1
            if self._refuse:
                end_connection(client, abort=True)
                continue
            link = Link(client)
            self._run(link, link.run(self.target, self._lines["up"], self._lines["down"]))

    def _run(self, link: Link, work: Coroutine[None, None, None]) -> None:
        self._links.add(link)
        link.task = self._loop.create_task(work)
        link.task.add_done_callback(lambda _: self._links.discard(link))

    def _orphan(self, dead: Side) -> None:
        for link in list(self._links):
            rest, task = link.orphan(dead), link.task
            if rest is not None and task is not None:
                self._run(rest, rest.alone(task))

    def _end(self, *, abort: bool) -> None:
        for link in list(self._links):
            link.close(abort=abort)

    async def _close(self) -> None:
        self._deafen()
        self._end(abort=True)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)

    def _call(self, work: Callable[[], object]) -> None:
        async def run() -> None:
            work()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(CALL_SECONDS)


def _bound(port: int) -> socket.socket:
    """A socket on `port` (0: a free one) that several of ours may share."""
    made = new_socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind((HOST, port))
    return made
