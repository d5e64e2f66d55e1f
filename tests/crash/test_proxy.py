"""The proxy itself, before a plain echo server: each fault looks to a client as it says."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator

import pytest

from tests.crash.proxy import Proxy
from tests.waiting import wait_until

SILENCE_SECONDS = 0.3  # an answer over loopback takes a thousandth of that
LIMIT_SECONDS = 10.0


class Echo(socketserver.BaseRequestHandler):
    """Sends back what comes; notes each connection's end."""

    ends: list[str]

    def handle(self) -> None:
        connection: socket.socket = self.request
        try:
            while data := connection.recv(1 << 16):
                connection.sendall(data)
            self.ends.append("FIN")
        except ConnectionResetError:
            self.ends.append("RST")


@pytest.fixture
def ends() -> list[str]:
    """How connections ended, as the server saw it."""
    return []


@pytest.fixture
def proxy(ends: list[str]) -> Iterator[Proxy]:
    """Before an echo server."""
    handler = type("Handler", (Echo,), {"ends": ends})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        with Proxy("127.0.0.1", server.server_address[1]) as made:
            yield made
        server.shutdown()


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    """Connected, and has had an answer."""
    with connected(proxy) as made:
        assert asked(made) == b"hello"
        yield made


def connected(proxy: Proxy) -> socket.socket:
    """A new connection through the proxy."""
    return socket.create_connection(("127.0.0.1", proxy.port), LIMIT_SECONDS)


def asked(connection: socket.socket, seconds: float = LIMIT_SECONDS, text: bytes = b"hello") -> bytes:
    """The echo of a text; TimeoutError when none comes."""
    connection.settimeout(seconds)
    connection.sendall(text)
    return received(connection, len(text))


def received(connection: socket.socket, size: int) -> bytes:
    """So many bytes, or those before the end."""
    answer = b""
    while len(answer) < size and (data := connection.recv(1 << 16)):
        answer += data
    return answer


def noted(ends: list[str], count: int) -> list[str]:
    """What the server saw, once it saw `count` ends."""
    wait_until(lambda: len(ends) >= count, f"{count} ends", LIMIT_SECONDS)
    return ends


def test_bytes_pass_and_are_counted(proxy: Proxy, client: socket.socket, ends: list[str]) -> None:
    """A megabyte there and back is unchanged; a client's FIN reaches the server."""
    text = bytes(range(256)) * 4096
    sender = threading.Thread(target=client.sendall, args=[text])
    sender.start()
    assert received(client, len(text)) == text
    sender.join()
    assert (proxy.opened, proxy.connections) == (1, 1)
    wait_until(lambda: proxy.bytes_down >= len(text) + 5, "all of it counted")
    assert (proxy.bytes_up, proxy.bytes_down) == (len(text) + 5, len(text) + 5)
    client.close()
    assert noted(ends, 1) == ["FIN"]


def test_cut_ends_both_sides_and_refuses(proxy: Proxy, client: socket.socket, ends: list[str]) -> None:
    """FIN both ways, refusal, and the same port after healing."""
    proxy.cut()
    assert client.recv(1) == b""
    assert noted(ends, 1) == ["FIN"]
    with pytest.raises(ConnectionRefusedError):
        connected(proxy)
    proxy.heal()
    with connected(proxy) as other:
        assert asked(other) == b"hello"
    assert proxy.opened == 2


def test_reset_also_meets_new_connections(proxy: Proxy, client: socket.socket, ends: list[str]) -> None:
    """RST both ways; attempts are counted."""
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert noted(ends, 1) == ["RST"]
    for _ in range(3):
        with pytest.raises(OSError), connected(proxy) as other:
            asked(other)
    assert proxy.opened == 4
    proxy.heal()
    with connected(proxy) as other:
        assert asked(other) == b"hello"


@pytest.mark.parametrize("direction", ["up", "down", "both"])
def test_black_hole_swallows(proxy: Proxy, client: socket.socket, ends: list[str], direction: str) -> None:
    """No answer and no end; what lost bytes is reset at healing, and never goes on with a hole in it."""
    proxy.black_hole(direction)  # type: ignore[arg-type]
    passed = proxy.bytes_up
    with pytest.raises(TimeoutError):
        asked(client, SILENCE_SECONDS)
    heard = 5 if direction == "down" else 0
    wait_until(lambda: proxy.bytes_up >= passed + heard, "the question at the server")
    assert proxy.bytes_up == passed + heard
    with connected(proxy) as other, pytest.raises(TimeoutError):
        asked(other, SILENCE_SECONDS)
    assert not [end for end in ends if end == "RST"]
    proxy.heal()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with connected(proxy) as other:
        assert asked(other) == b"hello"


def test_drop_loses_packets_and_tcp_goes_on(proxy: Proxy, client: socket.socket) -> None:
    """Nothing is acknowledged, a connection cannot be made, and after healing the same connection goes on."""
    proxy.drop()
    with pytest.raises(TimeoutError):
        asked(client, SILENCE_SECONDS)
    with pytest.raises(TimeoutError):
        socket.create_connection(("127.0.0.1", proxy.port), SILENCE_SECONDS)
    proxy.heal()
    client.settimeout(LIMIT_SECONDS)
    assert client.recv(5) == b"hello"


def test_drop_is_noticed_by_the_user_timeout(proxy: Proxy, client: socket.socket) -> None:
    """TCP_USER_TIMEOUT ends a connection whose packets are lost; a black hole that acknowledges it cannot notice."""
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 500)
    proxy.drop()
    with pytest.raises(OSError, match="timed out") as caught:
        asked(client)
    assert caught.value.errno is not None  # the kernel's ETIMEDOUT, not Python's own


@pytest.mark.parametrize("dead", ["client", "server"])
def test_half_open(proxy: Proxy, client: socket.socket, ends: list[str], dead: str) -> None:
    """One side is dead, the other one hears nothing; new connections work; healing ends what is left."""
    proxy.half_open(dead)  # type: ignore[arg-type]
    with pytest.raises(ConnectionResetError if dead == "client" else TimeoutError):
        asked(client, SILENCE_SECONDS)
    assert noted(ends, 1 if dead == "server" else 0) == (["RST"] if dead == "server" else [])
    with connected(proxy) as other:
        assert asked(other) == b"hello"
        proxy.heal()
        assert asked(other) == b"hello"
    if dead == "client":
        assert noted(ends, 2).count("RST") == 1
    else:
        client.settimeout(LIMIT_SECONDS)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_narrow_line(proxy: Proxy, client: socket.socket) -> None:
    """Piece by piece; what is left passes at healing."""
    proxy.slow(10, "up")
    assert asked(client, text=b"-") == b"-"  # what it reads from now on are pieces
    text, passed = b"x" * 5_000, proxy.bytes_up
    client.sendall(text)  # eight minutes at that rate
    wait_until(lambda: proxy.bytes_up > passed, "the first piece")
    assert proxy.bytes_up < passed + len(text)
    proxy.heal()
    assert received(client, len(text)) == text


def test_a_long_line(proxy: Proxy, client: socket.socket) -> None:
    """An answer that takes an hour was not seen yet, one that takes a moment comes."""
    proxy.delay(3600.0, "down")
    up, down = proxy.bytes_up, proxy.bytes_down
    with pytest.raises(TimeoutError):
        asked(client, SILENCE_SECONDS)
    wait_until(lambda: proxy.bytes_up == up + 5, "the question at the server")
    assert proxy.bytes_down == down
    proxy.delay(0.05)
    with connected(proxy) as other:
        assert asked(other) == b"hello"
    wait_until(lambda: proxy.bytes_down > down, "an answer counted")
    assert proxy.bytes_down == down + 5, "the first one came"


def test_a_target_that_is_down(ends: list[str]) -> None:
    """The client's connection breaks, as it would with a load balancer."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        down = unused.getsockname()[1]  # bound, but nobody listens
        with Proxy("127.0.0.1", down) as proxy, pytest.raises(ConnectionResetError), connected(proxy) as client:
            client.recv(1)
