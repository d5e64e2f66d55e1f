"""What a store goes by beside its records: marks that are ahead of the truth would have new records passed over."""

from __future__ import annotations

from collections.abc import Mapping

from consumers.store import Offsets


def ahead(store: str, offsets: Offsets, ends: Offsets, positions: Mapping[str, bytes], reached: bytes) -> list[str]:
    """A sentence for each offset beyond its log's end, and each position (wire form, by what it is) beyond the
    source's; `ends` and `reached` were read after the others."""
    found = [
        f"the offset that {store} holds of {topic}[{number}] is beyond the log's end"
        for (topic, number), end in ends.items()
        if offsets.get((topic, number), 0) > end
    ]
    found += [
        f"the {what} that {store} goes by is ahead of PostgreSQL"
        for what, position in positions.items()
        if position > reached
    ]
    return [f"{sentence}, so that new records are passed over → run `cdc rebuild {store}`" for sentence in found]
