"""What the config selects, as doctor, start-up and snapshot need to know it: key, replica identity, partitions,
remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cdc.errors import PreconditionError
from cdc.source.layout import missing_key, quoted
from cdc.source.relations import Identity, Relation


class TablesChanged(PreconditionError):
    """What the config selects is another set now: a new session makes topics, publishes and reads what came later."""


@dataclass(frozen=True, slots=True)
class SelectedTable:
    """A table the config selects. `leaves` (oid, schema, name) are the partitions rows really live in; `unusable` names
    the table or those leaves whose updates and deletes do not tell which row they mean; `remedy` is what to run."""

    schema: str
    name: str
    oid: int
    is_partitioned: bool
    leaves: tuple[tuple[int, str, str], ...]
    identity: Identity
    key: tuple[str, ...]
    has_pk: bool
    full: bool
    unusable: tuple[str, ...]
    remedy: str


def described(relation: Relation, leaves: Sequence[Relation]) -> SelectedTable:
    """Of a root, with its partitions if it has any: what they log decides."""
    parts = leaves if relation.partitioned else [relation]
    unusable = [part for part in parts if not part.identity.usable]
    return SelectedTable(
        relation.schema,
        relation.name,
        relation.oid,
        relation.partitioned,
        tuple((leaf.oid, leaf.schema, leaf.name) for leaf in leaves),
        relation.identity,
        relation.key,
        bool(relation.primary_key),
        is_full(parts),
        tuple(f"{part.schema}.{part.name}" for part in unusable),
        _remedy(relation, unusable),
    )


def is_full(parts: Sequence[Relation | None]) -> bool:
    """True when every part logs whole old rows."""
    return bool(parts) and all(part is not None and part.identity.kind == "f" for part in parts)


def _remedy(relation: Relation, unusable: list[Relation]) -> str:
    if not relation.key:
        return missing_key(relation).hint
    return " ".join(f"ALTER TABLE {quoted(part)} REPLICA IDENTITY FULL;" for part in unusable)
