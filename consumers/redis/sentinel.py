"""The sentinel: one hash beside the data that says which store this is and how far it has come.

Fields: `instance` (random, made with the store), `layout` (of our keys), `watermark` (newest position applied),
`o:<topic>:<partition>` next offset, `l:<topic>:<partition>` Kafka's id of the topic that offset belongs to,
`f:<schema>.<table>` floor (rows below it are truncated), `t:<schema>.<table>` the table's key layout,
`n:<schema>.<table>` newest position applied under it, `w:<position>:<schema>.<table>` a layout that the table had
before, whose rows up to that position are still to be removed, `role` (live, shadow, previous) and `beside` (the other
database) once there was a rebuild.

It is written by the same script call as the data: an offset never runs ahead of its records, and whoever restores an
older copy of the database restores the older offsets with it. Flushing the database removes it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from cdc.errors import DecodeError, StoreError, StoreLost
from consumers.redis.layout import Layout
from consumers.redis.link import Link
from consumers.store import Partition

LAYOUT = "1"  # of keys and fields as this code writes them
_LAYOUTS = msgspec.json.Decoder(Layout)


@dataclass(slots=True)
class Sentinel:
    """What the hash held when it was read. `left`: by position and table, layouts whose rows are to be removed."""

    instance: str
    offsets: dict[Partition, int] = field(default_factory=dict)
    logs: dict[Partition, str] = field(default_factory=dict)
    tables: dict[str, Layout] = field(default_factory=dict)
    left: dict[tuple[str, str], Layout] = field(default_factory=dict)
    watermark: bytes = b""
    role: str = "live"
    beside: int | None = None


def key_of(namespace: str) -> str:
    """The sentinel's own key."""
    return f"{namespace}state"


def offset_field(partition: Partition) -> str:
    """`o:<topic>:<partition>`."""
    return f"o:{partition[0]}:{partition[1]}"


def log_field(partition: Partition) -> str:
    """`l:<topic>:<partition>`."""
    return f"l:{partition[0]}:{partition[1]}"


async def open_sentinel(link: Link, namespace: str) -> Sentinel:
    """Reads the sentinel, makes one where there is none."""
    flat = await link.run("open", [key_of(namespace)], [uuid.uuid4().hex, LAYOUT])
    return _parse(zip(flat[::2], flat[1::2], strict=True), link.where)


async def read_sentinel(link: Link, namespace: str) -> Sentinel | None:
    """None where there is none."""
    flat = await link.command("HGETALL", key_of(namespace))
    return (
        _parse(flat.items() if isinstance(flat, dict) else zip(flat[::2], flat[1::2], strict=True), link.where)
        if flat
        else None
    )


def compare(held: Sentinel | None, instance: str, reached: dict[Partition, int], where: str) -> Sentinel:
    """`held`; raises StoreLost unless the store still is the one we know, and holds all we wrote."""
    hint = "it is refilled by replaying the topics"
    if held is None:
        raise StoreLost(f"Redis at {where} has lost its sentinel: the database was flushed or replaced", hint=hint)
    if held.instance != instance:
        raise StoreLost(f"Redis at {where} is another store than the one opened: it was swapped or refilled", hint=hint)
    for partition, offset in reached.items():
        if held.offsets.get(partition, 0) < offset:
            raise StoreLost(
                f"Redis at {where} went back on {partition[0]}[{partition[1]}], as after a failover to an older copy",
                hint=hint,
            )
    return held


def _parse(pairs: Iterable[tuple[bytes, bytes]], where: str) -> Sentinel:
    sentinel = Sentinel("")
    try:
        for name, value in pairs:
            kind, _, rest = name.decode().partition(":")
            if kind == "instance":
                sentinel.instance = value.decode()
            elif kind == "layout" and value.decode() != LAYOUT:
                raise StoreError(
                    f"Redis at {where} holds layout {value.decode()} of our keys, this version writes {LAYOUT}",
                    hint="rebuild it with this version into an empty database",
                )
            elif kind == "watermark":
                sentinel.watermark = value
            elif kind == "o":
                topic, _, partition = rest.rpartition(":")
                sentinel.offsets[topic, int(partition)] = int(value)
            elif kind == "l":
                topic, _, partition = rest.rpartition(":")
                sentinel.logs[topic, int(partition)] = value.decode()
            elif kind == "t":
                sentinel.tables[rest] = _LAYOUTS.decode(value)
            elif kind == "w":
                position, _, table = rest.partition(":")
                sentinel.left[position, table] = _LAYOUTS.decode(value)
            elif kind == "role":
                sentinel.role = value.decode()
            elif kind == "beside":
                sentinel.beside = int(value)
    except (ValueError, msgspec.DecodeError) as error:
        raise DecodeError(
            f"the sentinel of Redis at {where} does not parse: {error}", hint="rebuild the store"
        ) from error
    return sentinel
