"""The hashing embedder finds a sentence again, and texts that share its words; wrong settings are named."""

from __future__ import annotations

import subprocess
import sys
import types
from typing import Any

import numpy as np
import pytest

from cdc.config import Embedder as Settings
from cdc.errors import ConfigError
from consumers import embedder as module
from consumers.embedder import HashingEmbedder, embedder_from
from tests.chance import seeded

SENTENCES = [
    "Return the arithmetic mean of the data.",
    "Open a tar archive for reading or writing.",
    "Parse a JSON document from a string.",
    "Delete an entire directory tree.",
    "Wait until the thread terminates.",
    "Die Katze schläft auf dem Sofa.",
    "пользователь забыл пароль",
]


def nearest(query: str) -> str:
    embedder = HashingEmbedder(384)
    return SENTENCES[int(np.argmax(embedder.embed(SENTENCES) @ embedder.embed([query])[0]))]


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_sentence_finds_itself_whatever_its_case(sentence: str) -> None:
    assert nearest(sentence.upper()) == sentence


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("computing arithmetic means", 0),
        ("reading tar archives", 1),
        ("JSON parsing of strings", 2),
        ("deleting directory trees", 3),
        ("has the thread terminated?", 4),
        ("schlafende Katzen", 5),
        ("забыла пароли", 6),
    ],
)
def test_a_near_paraphrase_finds_it(query: str, sentence: int) -> None:
    assert nearest(query) == SENTENCES[sentence]


def test_vectors_are_the_same_in_another_process() -> None:
    code = (
        "from consumers.embedder import HashingEmbedder\n"
        "print(HashingEmbedder(64).embed(['one two three', '']).tobytes().hex())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True)
        for seed in ("1", "2")
    ]
    own = HashingEmbedder(64).embed(["one two three", ""]).tobytes().hex()
    assert [run.stdout.decode().strip() for run in runs] == [own, own]


def test_a_text_does_not_depend_on_its_neighbours_or_on_what_came_before() -> None:
    embedder = HashingEmbedder(64)
    many = embedder.embed([f"word{n} and {s}" for n, s in enumerate(SENTENCES * 100)] + SENTENCES)
    assert np.array_equal(many[-len(SENTENCES) :], np.concatenate([HashingEmbedder(64).embed([s]) for s in SENTENCES]))


def test_shape_length_and_nothing() -> None:
    embedder = HashingEmbedder(32)
    vectors = embedder.embed(["a word", "", "...", "\ud800 lone"])
    assert (vectors.shape, vectors.dtype) == ((4, 32), np.float32)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 0, 0, 1])
    assert embedder.embed([]).shape == (0, 32)


def test_order_of_words_counts_a_little() -> None:
    a, b, c = HashingEmbedder(384).embed(["dog bites man", "man bites dog", "man eats cake"])
    assert 0.5 < a @ b < 0.99
    assert a @ b > a @ c


def test_words_are_forgotten_beyond_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KNOWN_WORDS", 10)
    embedder = HashingEmbedder(64)
    first = embedder.embed(SENTENCES)
    assert np.array_equal(embedder.embed(SENTENCES), first)
    assert len(embedder._numbers) <= 60


def test_the_extra_missing_or_no_model_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ConfigError, match=r"not installed.*memory-cdc\[embed\]"):
        embedder_from(Settings(kind="sentence-transformers", model="any"))
    with pytest.raises(ConfigError, match=r"embedder\.model is missing"):
        embedder_from(Settings(kind="sentence-transformers"))
    assert embedder_from(Settings(dimension=16)).dimension == 16


def test_a_model_is_pinned_by_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tensor:
        def __init__(self, value: float) -> None:
            self.value = value

        def __getattr__(self, name: str) -> Any:
            return (lambda: np.full(3, self.value, np.float32)) if name == "numpy" else lambda: self

    class Model:
        def __init__(self, name: str) -> None:
            if name == "absent":
                raise OSError("no such folder")
            self.weight = len(name)

        def get_sentence_embedding_dimension(self) -> int:
            return 3

        def state_dict(self) -> dict[str, Tensor]:
            return {"layer": Tensor(self.weight)}

        def encode(self, texts: list[str], **_options: object) -> Any:
            return np.ones((len(texts), 3))

    library = types.ModuleType("sentence_transformers")
    library.SentenceTransformer = Model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", library)
    pins = [
        embedder_from(Settings(kind="sentence-transformers", model=name)).pin for name in ("/a/mini", "/b/mini", "/c/m")
    ]
    assert pins[0] == pins[1] != pins[2]
    model = embedder_from(Settings(kind="sentence-transformers", model="mini"))
    assert (model.dimension, model.embed(["x", "y"]).shape) == (3, (2, 3))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        embedder_from(Settings(kind="sentence-transformers", model="absent"))


def test_a_text_has_one_vector_whatever_was_embedded_before_or_beside() -> None:
    """To the last bit, also where features cancel each other: verify compares exactly."""
    chance = seeded("texts")
    words = [f"word{number}" for number in range(400)]
    texts = [" ".join(chance.choices(words, k=120)) for _ in range(300)]
    alone = [HashingEmbedder(384).embed([text]).tobytes() for text in texts]
    shuffled = list(enumerate(texts))
    chance.shuffle(shuffled)
    beside = HashingEmbedder(384)
    beside.embed([" ".join(reversed(words))])
    found = beside.embed([text for _, text in shuffled])
    assert [vector.tobytes() for vector in found] == [alone[number] for number, _ in shuffled]
