"""A record's key as it stands in a URL: the value itself, or a JSON object where the key has several columns."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cdc.errors import MALFORMED, ConfigError

_OBJECT = msgspec.json.Decoder(dict[str, str | int])


def no_users(table: str) -> ConfigError:
    """For a question by user of a table that names no such column."""
    return ConfigError(f"{table} has no index of users", hint=f'set tables."{table}".user = "<column>"')


def values_of(identity: str, names: Sequence[str]) -> dict[str, str]:
    """By column. Raises ConfigError for what is no key of these columns."""
    if len(names) == 1:
        return {names[0]: identity}
    try:
        found = {name: str(value) for name, value in _OBJECT.decode(identity).items()}
    except MALFORMED:
        found = {}
    if set(found) != set(names):
        shape = ", ".join(f'"{name}": …' for name in names)
        raise ConfigError(f"the key of this table is {', '.join(names)}", hint=f"give it as JSON: {{{shape}}}")
    return found
