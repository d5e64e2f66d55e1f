"""One client's connection through the proxy: two sockets, and what befalls the bytes between them (see proxy.py)."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import socket
import struct
from collections.abc import Callable
from typing import Literal

Side = Literal["client", "server"]

CHUNK = 64 << 10  # bytes read at once
TICKS = 20  # pieces a second of a slow line
QUEUED = 16  # chunks on the way in one direction; then the sender's TCP window closes
_ABORT = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close sends RST
_ATTACH, _DETACH = 26, 27  # SO_ATTACH_FILTER, SO_DETACH_FILTER (socket(7)); Python does not name them
_LOSE = struct.pack("HBBI", 6, 0, 0, 0)  # BPF "ret #0": the kernel keeps nothing of any packet


class Line:
    """What befalls the bytes of one direction now, for all connections; `count` takes the bytes that were delivered."""

    def __init__(self, count: Callable[[int], None]) -> None:
        self.count = count
        self.open = asyncio.Event()
        self.set()

    def set(self, *, swallow: bool = False, hold: bool = False, rate: int = 0, delay: float = 0.0) -> None:
        """`rate` in bytes a second (0: no limit), `delay` in seconds."""
        self.swallow, self.rate, self.delay = swallow, rate, delay
        self.open.clear() if hold else self.open.set()


class Link:
    """Owns the client's socket and ours to the server. `run` is its task's work; all calls come from the loop."""

    def __init__(self, client: socket.socket) -> None:
        self.client: socket.socket | None = client
        self.server: socket.socket | None = None
        self.tainted = False  # bytes were lost: it may not go on
        self.orphaned = False  # its client is gone
        self.task: asyncio.Task[None] | None = None

    @property
    def ends(self) -> list[socket.socket]:
        """The sockets that are open."""
        return [end for end in (self.client, self.server) if end is not None and end.fileno() >= 0]

    async def run(self, target: tuple[str, int], up: Line, down: Line) -> None:
        """Until both sides have ended, or `close`. When one breaks, or the target is down, the other breaks too."""
        try:
            await (self._swallow() if up.swallow else self._connected(target, up, down))
        except* OSError:
            self.tainted = True
        finally:
            self._shut(abort=self.tainted)

    def close(self, *, abort: bool) -> None:
        """Ends both sides: RST with `abort`, FIN without."""
        self._shut(abort=abort)
        if self.task is not None:
            self.task.cancel()

    def orphan(self, dead: Side) -> Link | None:
        """Resets the `dead` side. The link that holds the other one, whose `alone` is to be run; None without any."""
        gone, left = (self.client, self.server) if dead == "client" else (self.server, self.client)
        if self.tainted or gone is None or left is None or self.task is None:
            return None
        self.client = self.server = None
        self.task.cancel()
        end_connection(gone, abort=True)
        rest = Link(left)
        rest.orphaned = dead == "client"
        return rest

    async def alone(self, before: asyncio.Task[None]) -> None:
        """Hears nothing, says nothing, once the task `before` has let go of the socket."""
        await asyncio.wait([before])
        try:
            await self._swallow()
        except OSError:
            return  # the side that was left has ended
        finally:
            self._shut(abort=True)

    async def _swallow(self) -> None:
        self.tainted = True
        while await asyncio.get_running_loop().sock_recv(self.ends[0], CHUNK):
            continue

    async def _connected(self, target: tuple[str, int], up: Line, down: Line) -> None:
        (client,) = self.ends
        self.server = server = new_socket()
        await asyncio.get_running_loop().sock_connect(server, target)
        async with asyncio.TaskGroup() as group:
            for source, sink, line in ((client, server, up), (server, client, down)):
                queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUED)
                group.create_task(self._read(source, line, queue))
                group.create_task(self._write(sink, line, queue))

    async def _read(self, source: socket.socket, line: Line, queue: asyncio.Queue[tuple[float, bytes]]) -> None:
        loop, data = asyncio.get_running_loop(), b"-"
        while data:
            data = await loop.sock_recv(source, max(1, line.rate // TICKS) if line.rate else CHUNK)
            await queue.put((loop.time() + line.delay, data))

    async def _write(self, sink: socket.socket, line: Line, queue: asyncio.Queue[tuple[float, bytes]]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await queue.get()
            await asyncio.sleep(max(due - loop.time(), len(data) / line.rate if line.rate else 0))
            await line.open.wait()
            if line.swallow:
                self.tainted = True
            elif not data:
                with contextlib.suppress(OSError):  # it has closed already
                    sink.shutdown(socket.SHUT_WR)
                return
            elif not self.tainted:
                await loop.sock_sendall(sink, data)
                line.count(len(data))

    def _shut(self, *, abort: bool) -> None:
        for each in self.ends:
            end_connection(each, abort=abort)


def end_connection(end: socket.socket, *, abort: bool) -> None:
    """Closes a socket of this loop: RST with `abort`, FIN without."""
    loop = asyncio.get_running_loop()
    loop.remove_reader(end)
    loop.remove_writer(end)
    if abort:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
    end.close()


def new_socket() -> socket.socket:
    """Non-blocking, without Nagle's delay."""
    made = socket.socket()
    made.setblocking(False)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def lose_packets(end: socket.socket, lost: bool) -> None:
    """The kernel drops each packet that arrives at this socket, or takes them again."""
    if not lost:
        with contextlib.suppress(FileNotFoundError):  # it has no filter
            end.setsockopt(socket.SOL_SOCKET, _DETACH, 0)
        return
    program = ctypes.create_string_buffer(_LOSE)
    end.setsockopt(socket.SOL_SOCKET, _ATTACH, struct.pack("HL", 1, ctypes.addressof(program)))
