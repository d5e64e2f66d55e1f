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
