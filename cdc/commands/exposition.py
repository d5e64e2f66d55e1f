"""What a process says on /metrics."""

from __future__ import annotations

from collections.abc import Mapping

import httpx

from cdc.errors import ConnectError

Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]  # (sample name, sorted labels) → value


async def read_samples(address: str, seconds: float) -> Samples:
    """Every sample of the process at host:port. Raises ConnectError."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        async with httpx.AsyncClient(timeout=seconds, trust_env=False) as client:
            response = await client.get(f"http://{address}/metrics")
            response.raise_for_status()
    except httpx.HTTPError as error:
        raise ConnectError(f"nothing serves metrics at {address}: {error or type(error).__name__}") from error
    families = text_string_to_metric_families(response.text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def total(samples: Mapping[tuple[str, tuple[tuple[str, str], ...]], float], name: str, **labels: str) -> float | None:
    """The sum over all samples of the name that have these labels; None when there is none."""
    wanted = set(labels.items())
    found = [value for (sample, held), value in samples.items() if sample == name and wanted <= set(held)]
    return sum(found) if found else None
