"""TRUNCATE and partitions: one of a root is one event of the root, one of a single partition cannot be said.

Under the root's name "all rows are gone" is true only when every partition was emptied; the rows of one partition are
not named in the stream. So that stops the reader, with the remedy, rather than leave stale rows in the stores. (With
publish_via_partition_root pgoutput does not even send it: docs/types.md.)
"""

from __future__ import annotations

from collections.abc import Sequence

from cdc.errors import PreconditionError
from cdc.source.catalog import Catalog
from cdc.source.relations import Relation


def partition_truncated(relation: Relation, root: Relation) -> PreconditionError:
    """What neither plugin's stream can say under the root's name."""
    return PreconditionError(
        f"the partition {relation.schema}.{relation.name} was truncated without {root.schema}.{root.name}: "
        "its rows are gone, but the stream does not name them",
        hint="run `cdc resync`, and empty partitions by DELETE",
    )


class Truncations:
    """wal2json's T messages of one transaction: one a relation, all of a statement with the same LSN, partitions
    after or before their root. A statement empties a root when it names it or all its leaves."""

    def __init__(self) -> None:
        self._leaves: dict[tuple[str, int], list[Relation]] = {}  # (LSN, root) → its partitions so far
        self._said: set[tuple[str, int]] = set()

    def empties(self, relation: Relation, root: Relation, lsn: str) -> bool:
        """True once for each root a statement empties."""
        place = (lsn, root.oid)
        if place in self._said:
            return False
        if relation.oid != root.oid:
            leaves = self._leaves.setdefault(place, [])
            leaves.append(relation)
            if not {leaf.oid for leaf in leaves}.issuperset(root.leaves):
                return False
        self._said.add(place)
        return True

    def finish(self, catalog: Catalog) -> None:
        """At the transaction's end: raises PreconditionError for partitions without their root."""
        for place, leaves in self._leaves.items():
            if place not in self._said:
                raise partition_truncated(leaves[0], catalog.root(leaves[0]))
        self._leaves.clear()
        self._said.clear()


def folded(catalog: Catalog, truncated: Sequence[Relation]) -> list[Relation]:
    """The roots that one TRUNCATE emptied, in its order. Raises PreconditionError for partitions without their root."""
    named = {relation.oid for relation in truncated}
    roots: dict[int, Relation] = {}
    for relation in truncated:
        root = catalog.root(relation)
        if root.oid not in named and not named.issuperset(root.leaves):
            raise partition_truncated(relation, root)
        roots[root.oid] = root
    return list(roots.values())
