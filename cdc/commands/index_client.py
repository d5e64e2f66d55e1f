"""The index of a running FAISS consumer, asked over HTTP: the process holds it, nobody else can read it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import msgspec
import numpy as np
import numpy.typing as npt

from cdc.commands.addresses import index_address
from cdc.config import Config
from cdc.envelope import decode_floats
from cdc.errors import CdcError, ConfigError, ConnectError, PreconditionError, StoreError
from consumers.gateway.asked import IndexQuery
from consumers.gateway.models import IndexHits, IndexStats
from consumers.gateway.records import Disagreed
from consumers.store import Version

ANSWER_SECONDS = 30.0  # a thousand vectors take milliseconds; a busy writer may hold them back
LOOK_SECONDS = 0.1  # between two looks how far the index is
IDLE_SECONDS = 1.0  # a connection is used again within that: after 5 s the server closes it, maybe as we send
KEYS = 1000  # a request, as the service allows
JSON = {"content-type": "application/json"}
WRONG: dict[int, type[CdcError]] = {412: PreconditionError, 422: ConfigError}  # how a search says no to its question

_RECORDS = msgspec.json.Decoder(list[tuple[str, str]])


class RemoteIndex:
    """Fills Inspectable. Use as an async context manager. Raises ConnectError, StoreError."""

    def __init__(self, config: Config) -> None:
        self.address = index_address(config)
        kept = httpx.Limits(keepalive_expiry=IDLE_SECONDS)
        self._client = httpx.AsyncClient(
            base_url=f"http://{self.address}", timeout=ANSWER_SECONDS, trust_env=False, limits=kept
        )

    async def __aenter__(self) -> RemoteIndex:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._client.aclose()

    async def count(self, schema: str, table: str) -> int:
        """Vectors in the index."""
        stats = await self.stats()
        return stats.figures.vectors if stats.figures and stats.figures.table == f"{schema}.{table}" else 0

    async def stats(self) -> IndexStats:
        """Its figures, which are there, and how far it is. Raises StoreError when it cannot be read."""
        stats = IndexStats.model_validate(await self._ask("GET", "/stats"))
        if not stats.up:
            raise StoreError(f"the index cannot be read: {stats.reason}", hint="look into the consumer's log")
        return stats

    async def search(self, query: IndexQuery) -> IndexHits:
        """Raises ConfigError for a question it cannot answer, PreconditionError when `min_position` does not come."""
        try:
            body = query.model_dump_json(by_alias=True, exclude_unset=True)
            seconds = ANSWER_SECONDS + query.wait_seconds  # it may wait that long before it looks
            response = await self._client.post("/search", content=body, headers=JSON, timeout=seconds)
        except httpx.HTTPError as error:
            raise self._away(error) from error
        if response.status_code in WRONG:
            raise WRONG[response.status_code](_detail(response))
        if response.status_code != 200:
            raise self._refused(response)
        return IndexHits.model_validate_json(response.content)

    async def versions(self, schema: str, table: str, keys: Sequence[bytes]) -> list[Version | None]:
        """What the index holds of the keys."""
        return [version for version, _vector in await self.records(schema, table, keys, vectors=False)]

    async def records(
        self, schema: str, table: str, keys: Sequence[bytes], *, vectors: bool = True
    ) -> list[tuple[Version | None, npt.NDArray[np.float32] | None]]:
        """Versions with the vectors themselves."""
        found: list[Any] = []
        for start in range(0, len(keys), KEYS):
            asked = [key.decode() for key in keys[start : start + KEYS]]
            body = {"table": f"{schema}.{table}", "keys": asked, "vectors": vectors}
            found += await self._ask("POST", "/versions", json=body)
        return [(_version(held), _vector(held)) for held in found]

    async def scan(self, schema: str, table: str) -> AsyncIterator[tuple[bytes, bytes]]:
        """Every live record."""
        try:
            async with self._client.stream("GET", "/records", params={"table": f"{schema}.{table}"}) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise self._refused(response)
                async for lines in _whole_lines(response.aiter_bytes()):
                    for key, position in _RECORDS.decode(b"[%b]" % lines.replace(b"\n", b",")):
                        yield key.encode(), position.encode()
        except httpx.HTTPError as error:
            raise self._away(error) from error

    async def digests(
        self, schema: str, table: str, keys: Sequence[bytes], *, versions: bool, each: bool, vectors: bool = True
    ) -> list[str]:
        """Checksums over what the index really holds of at most `KEYS` keys; see consumers.faiss.digests."""
        asked = [key.decode() for key in keys]
        body = {"table": f"{schema}.{table}", "keys": asked, "versions": versions, "each": each, "vectors": vectors}
        return [str(one) for one in await self._ask("POST", "/digests", json=body)]

    async def stamps(self, schema: str, table: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """`position|version vector` of each live record; None for others."""
        found: list[bytes | None] = []
        for start in range(0, len(keys), KEYS):
            asked = [key.decode() for key in keys[start : start + KEYS]]
            told = await self._ask("POST", "/stamps", json={"table": f"{schema}.{table}", "keys": asked})
            found += [None if one is None else one.encode() for one in told]
        return found

    async def disagreement(self) -> Disagreed:
        """Where the index does not agree with itself; see consumers.gateway.records."""
        return Disagreed.model_validate(await self._ask("GET", "/disagreement"))

    async def agree(self) -> int:
        """Takes out of the index what no key stands for; see consumers.faiss.agreement."""
        return int(await self._ask("POST", "/agree"))

    async def doubt(self, schema: str, table: str, keys: Sequence[bytes], reached: bytes | None = None) -> None:
        """What is held of these keys is wrong: their next record is decoded in full, and taken by those that claim a
        position above `reached` (wire form)."""
        for start in range(0, len(keys), KEYS):
            asked = [key.decode() for key in keys[start : start + KEYS]]
            body = {"table": f"{schema}.{table}", "reached": reached and reached.decode()}
            await self._ask("POST", "/doubt", json={**body, "keys": asked})

    async def caught_up(self, position: bytes, seconds: float) -> None:
        """Returns once everything up to `position` is applied. Raises PreconditionError after `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                while ((await self._ask("GET", "/reached"))["position"] or "").encode() < position:
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError as error:
            raise PreconditionError(
                f"the index did not catch up with the source within {seconds:g} s",
                hint="see `cdc status`: is the reader running, and is the lag falling?",
            ) from error

    async def _ask(self, method: str, path: str, **options: Any) -> Any:
        try:
            response = await self._client.request(method, path, **options)
        except httpx.HTTPError as error:
            raise self._away(error) from error
        if response.status_code not in (200, 204):
            raise self._refused(response)
        return response.json() if response.content else None

    def _away(self, error: httpx.HTTPError) -> ConnectError:
        reason = str(error) or type(error).__name__
        return ConnectError(
            f"the FAISS consumer does not answer at {self.address}: {reason}",
            hint="start `cdc consume faiss`, or correct [index] host and port",
        )

    def _refused(self, response: httpx.Response) -> StoreError:
        return StoreError(
            f"the FAISS consumer at {self.address} answers {response.status_code}: {response.text[:300]}",
            hint="look into its log",
        )


def _detail(response: httpx.Response) -> str:
    return str(response.json()["detail"])


async def _whole_lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """What comes, cut at line ends, the last line end left out."""
    rest = b""
    async for piece in pieces:
        lines, end, begun = piece.rpartition(b"\n")
        if end:
            yield rest + lines
            rest = begun
        else:
            rest += piece
    if rest:
        yield rest


def _version(held: Any) -> Version | None:
    return None if held is None else Version(held["position"].encode(), held["vector"].encode(), held["deleted"])


def _vector(held: Any) -> npt.NDArray[np.float32] | None:
    return None if held is None or held["floats"] is None else decode_floats(held["floats"])
