"""What the stores' own code knows of the configuration: the index's dimension and kind, the names of Redis keys."""

from __future__ import annotations

from collections.abc import Iterator

from cdc.config import Config
from cdc.doctor.finding import Finding, error, ok, warning
from cdc.errors import CdcError, DecodeError
from cdc.source.catalog import Catalog
from consumers.embedder import embedder_from
from consumers.faiss import FaissStore
from consumers.faiss.folder import Home
from consumers.faiss.snapshot import PREFIX, Manifest, read_manifest
from consumers.redis.keys import parse_template


def check_stores(config: Config) -> Iterator[Finding]:
    """Raises nothing."""
    try:
        yield from _index(config)
    except CdcError as failed:
        yield error("faiss", failed.message, failed.hint)
    yield from _keys(config)


def _index(config: Config) -> Iterator[Finding]:
    FaissStore(config)  # raises ConfigError for settings that cannot work
    settings = config.table(*config.faiss.table.split(".", 1))
    wanted = config.faiss.dimension if settings.vector else embedder_from(config.embedder).dimension
    manifest = _newest(config)
    if manifest is None:
        yield ok("faiss", "there is no snapshot of the index yet")
        return
    held, source = manifest.kindred.dimension, manifest.kindred
    if wanted is not None and held is not None and wanted != held:
        yield error(
            "faiss",
            f"the index has {held} dimensions, the configuration says {wanted}",
            f"set it back to {held}, or run `cdc rebuild faiss`",
        )
    elif (source.table, source.metric) != (config.faiss.table, config.faiss.metric):
        yield warning(
            "faiss",
            f"the index is of {source.table} with {source.metric}, the configuration says {config.faiss.table} with "
            f"{config.faiss.metric}; at its next start the consumer replays everything",
            "restore the configuration, or run `cdc rebuild faiss`",
        )
    else:
        yield ok("faiss", f"the index's newest snapshot has {manifest.vectors} vectors of {held} dimensions")


def _newest(config: Config) -> Manifest | None:
    """Of the live generation; a damaged one is passed over here, and set aside by the consumer."""
    home = Home(config.faiss.path)
    try:
        live, _replaced = home.current()
    except OSError:
        return None  # a folder that cannot be used is told of by another check
    if live is None:
        return None
    folders = sorted((home.path / live).glob(f"{PREFIX}*"), key=lambda folder: int(folder.name.removeprefix(PREFIX)))
    for folder in reversed(folders):
        try:
            return read_manifest(folder)
        except DecodeError:
            continue  # or just replaced by a newer one
    return None


def _keys(config: Config) -> Iterator[Finding]:
    """Silent when PostgreSQL cannot be asked: another check has said so."""
    catalog = Catalog(None, config)
    try:
        tables = catalog.selected_tables()
    except CdcError:
        return
    finally:
        catalog.close()
    for table in tables:
        try:
            parse_template(config, table.schema, table.name, table.key)
        except CdcError as failed:
            yield error("redis", failed.message, failed.hint)
