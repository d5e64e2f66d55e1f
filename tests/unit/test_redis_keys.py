"""Names of Redis keys: both ways, and never two records under one."""

from __future__ import annotations

import fnmatch
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.config import Config, parse
from cdc.errors import ConfigError, DecodeError
from consumers.redis.keys import Template, decode_value, encode_value, keys_for, parse_template
from consumers.redis.layout import Layout, learn

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
VALUES = st.one_of(TEXT, st.sampled_from(["by_user", "a:b", "%3A", "{x}", "", "é", "a b"]))


def config(**templates: str) -> Config:
    return parse(
        {
            "postgres": {"dsn": "dbname=unused"},
            "kafka": {"bootstrap": "unused:9092"},
            "tables": {f"public.{table}": {"redis_key": template} for table, template in templates.items()},
        }
    )


def template(text: str, *columns: str) -> Template:
    return parse_template(config(t=text), "public", "t", columns)


@given(value=VALUES)
def test_a_value_comes_back_and_holds_no_separator(value: str) -> None:
    encoded = encode_value(value)
    assert decode_value(encoded) == value
    assert not set(encoded) & set(":{} ")
    assert encoded != "by_user"


@given(left=st.tuples(VALUES, VALUES), right=st.tuples(VALUES, VALUES))
def test_two_records_never_share_a_key(left: tuple[str, str], right: tuple[str, str]) -> None:
    keys = [keys_for(config(), "public", "t", msgspec.json.encode({"a": a, "b": b})) for a, b in (left, right)]
    assert (keys[0] == keys[1]) == (left == right)


@given(values=st.tuples(VALUES, VALUES), text=st.sampled_from(["t:{a}:{b}", "t*[x]:{{{b}}}:{a}.", "t%:{b}:x:{a}"]))
def test_a_key_gives_its_values_back(values: tuple[str, str], text: str) -> None:
    made = template(text, "a", "b")
    by_column = dict(zip(("a", "b"), values, strict=True))
    key = made.render(by_column)
    assert made.values(key) == by_column
    # SCAN's glob, read by fnmatch: its sets stand for Redis' backslashes
    assert re.fullmatch(fnmatch.translate(re.sub(r"\\(.)", r"[\1]", made.glob)), key)


@given(key=st.dictionaries(st.sampled_from(["a", "b"]), st.one_of(VALUES, st.integers()), min_size=2))
def test_topic_keys_come_back_byte_for_byte(key: dict[str, str | int]) -> None:
    layout = learn(config(), "public", "t", msgspec.json.encode({name: key[name] for name in ("a", "b")}))
    for values in (key, {"a": "x", "b": 1}, {"a": 1.5, "b": True}):
        wire = msgspec.json.encode({name: values[name] for name in ("a", "b")})
        name, kept = layout.redis_key(wire)
        assert name.decode() == keys_for(config(), "public", "t", wire)
        assert (kept.encode() if kept else layout.topic_key(name.decode())) == wire


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ("memory:{id}", "memory:{id}", True),
        ("memory:{id}", "memory:{a}:{b}", True),
        ("memory:{id}", "memory:x", True),
        ("memory:{id}", "memory:x:{id}", False),
        ("memory:{id}", "memory:by_user:{id}", True),
        ("memory:{a}:{b}", "memory:{id}", True),  # their indexes would be one
        ("memory:{a}:{b}", "memo:{id}", False),
        ("memory:{a}:x", "memory:y:{b}", True),
        ("note:{id}", "memory:{id}", False),
        ("m-{id}", "m-x{id}", True),
    ],
)
def test_templates_that_could_meet(left: str, right: str, expected: bool) -> None:
    made = []
    for text in (left, right):
        columns = re.findall(r"\{(\w+)\}", text)
        literals = tuple(re.split(r"\{\w+\}", text))
        made.append(Layout(text, literals, tuple(columns), (), "user_id"))
    assert made[0].collides(made[1]) is expected
    assert made[1].collides(made[0]) is expected


def test_hash_tags_and_exact_numbers() -> None:
    tagged = config(t="memory:{{{id}}}")
    assert keys_for(tagged, "public", "t", b'{"id":12345678901234567890123}') == "memory:{12345678901234567890123}"
    assert template("memory:{{{id}}}", "id").index_prefix == "memory:by_user:"
    assert template("{{m}}:memory:{id}", "id").index_prefix == "{m}:memory:by_user:"


@pytest.mark.parametrize(
    "text", ["t:{a}", "t:{a}{b}", "t:{a}-{b}", "{a}:{b}", "cdc:{a}:{b}", "t:{a}:{b}:{b}", "t:{a}:{c}"]
)
def test_templates_that_would_mix_records_up_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"redis_key = .* → "):
        template(text, "a", "b")


@pytest.mark.parametrize("key", [b"", b"[]", b"1", b'{"id":', b'{"id":"\xff"}'])
def test_a_damaged_key_is_told(key: bytes) -> None:
    with pytest.raises(DecodeError):
        keys_for(config(), "public", "t", key)
