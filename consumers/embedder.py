"""Text → vectors, for rows without a vector column.

The hashing embedder needs no model and no download: features of a text (words, pairs of neighbouring words, groups of
three characters inside words) are hashed to signed places of the vector (Weinberger et al., "Feature hashing for large
scale multitask learning", 2009), so texts that share words or parts of words point the same way. It knows no
synonyms. The same text gives the same vector in every process and on every machine. For meaning there is
sentence-transformers, behind the extra `embed`.
"""

from __future__ import annotations

import hashlib
import re
import threading
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cdc.config import Embedder as Settings
from cdc.errors import ConfigError

Vectors = npt.NDArray[np.float32]

WORD = re.compile(r"\w+")
LONGEST_WORD = 64  # characters; the rest of longer "words" (hashes, URLs' tails) tells nothing
KNOWN_WORDS = 200_000  # whose features are kept in memory: about 50 MB; then it starts afresh
CHUNK_TEXTS = 256  # keeps the intermediate arrays in the processor's cache
# A word tells the more the rarer it is, and short words are common in every language written in letters.
SHORT_WORDS = {1: 0.2, 2: 0.3, 3: 0.6}
PAIR_WEIGHT = 0.6  # a pair is worth less than its words: word order varies between paraphrases
GRAIN = 2.0**32  # weights are multiples of 1 / GRAIN: sums up to 2^21 are exact, and the same in any order
GRAM_WEIGHT = 1.0  # all groups of a word together weigh what the word does: inflected forms meet


class Embedder(Protocol):
    """`name` for people; `pin` changes whenever equal texts would get other vectors. Thread-safe."""

    name: str
    pin: str
    dimension: int

    def embed(self, texts: Sequence[str]) -> Vectors:
        """(n, dimension); a text without any feature gives a zero row."""


def embedder_from(settings: Settings) -> Embedder:
    """What the configuration names. Raises ConfigError when a model or the extra is missing."""
    if settings.kind == "hash":
        return HashingEmbedder(settings.dimension)
    if not settings.model:
        raise ConfigError(
            "embedder.model is missing: sentence-transformers needs to know which model",
            hint="set embedder.model to the path of a model's folder, or to its id",
        )
    return SentenceEmbedder(settings.model)


class HashingEmbedder:
    """See the module. Length 1, or zero for a text without a word."""

    name = "hash"

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.pin = f"hash-2-{dimension}"  # 2: the version of the features below
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._numbers: dict[str, int] = {}
        self._words = _Words()

    def embed(self, texts: Sequence[str]) -> Vectors:
        """(n, dimension)."""
        parts = [self._chunk(texts[at : at + CHUNK_TEXTS]) for at in range(0, len(texts), CHUNK_TEXTS)]
        return np.concatenate(parts) if parts else np.empty((0, self.dimension), dtype=np.float32)

    def _chunk(self, texts: Sequence[str]) -> Vectors:
        split = [WORD.findall(plain(text)) for text in texts]
        owners = np.repeat(np.arange(len(texts)), [len(words) for words in split])
        with self._lock:
            if len(self._numbers) > KNOWN_WORDS:
                self._forget()
            numbers = np.array([self._number(word) for found in split for word in found], dtype=np.int64)
            words = self._words.table()
        sums = np.zeros(len(texts) * self.dimension)
        if len(numbers):
            sums += self._of_words(words, owners, numbers, len(sums))
            sums += self._of_pairs(words, owners, numbers, len(sums))
        vectors = sums.reshape(len(texts), self.dimension)
        lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        return (vectors / np.where(lengths == 0, 1, lengths)[:, None]).astype(np.float32)

    def _number(self, word: str) -> int:
        number = self._numbers.get(word)
        if number is None:
            number = self._numbers[word] = self._words.add(word)
        return number

    def _of_words(self, words: _Table, owners: Any, numbers: Any, size: int) -> Any:
        """Each word once a text, weighing 1 + ln(occurrences): a word that is repeated is not the whole text."""
        pairs, counts = np.unique(owners * len(words.weights) + numbers, return_counts=True)
        owner, number = np.divmod(pairs, len(words.weights))
        lengths = words.bounds[number + 1] - words.bounds[number]
        firsts = np.repeat(words.bounds[number] - (np.cumsum(lengths) - lengths), lengths)
        features = firsts + np.arange(len(firsts))
        weights = np.repeat((1 + np.log(counts)) * words.weights[number], lengths) * words.shares[features]
        return self._scatter(np.repeat(owner, lengths), words.hashes[features], weights, size)

    def _of_pairs(self, words: _Table, owners: Any, numbers: Any, size: int) -> Any:
        left = np.flatnonzero(owners[1:] == owners[:-1])
        first, second = numbers[left], numbers[left + 1]
        mixed = words.hashes[words.bounds[first]] * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= words.hashes[words.bounds[second]] * np.uint64(0xC2B2AE3D27D4EB4F)  # another factor: order counts
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)  # the finish of splitmix64
        weights = PAIR_WEIGHT * np.sqrt(words.weights[first] * words.weights[second])
        return self._scatter(owners[left], mixed ^ (mixed >> np.uint64(32)), weights, size)

    def _scatter(self, owners: Any, hashes: Any, weights: Any, size: int) -> Any:
        places = (hashes >> np.uint64(1)) % np.uint64(self.dimension)
        signed = np.rint(np.where(hashes & np.uint64(1), weights, -weights) * GRAIN) / GRAIN
        return np.bincount(owners * self.dimension + places.astype(np.int64), weights=signed, minlength=size)


class _Table(NamedTuple):
    """Features of words by number: word i has hashes[bounds[i]:bounds[i + 1]], the first is the word itself."""

    hashes: Any  # uint64
    shares: Any  # what a feature weighs within its word
    bounds: Any  # one more than words
    weights: Any  # what a word weighs


class _Column:
    """An array that grows at the end; what was read before stays as it was."""

    def __init__(self, dtype: Any) -> None:
        self._array = np.empty(1024, dtype=dtype)  # a page or two
        self._size = 0

    def extend(self, values: list[Any]) -> Any:
        """All of it, the new values included."""
        size = self._size + len(values)
        if size > len(self._array):
            array = np.empty(max(size, 2 * len(self._array)), dtype=self._array.dtype)
            array[: self._size] = self._array[: self._size]
            self._array = array
        self._array[self._size : size] = values
        self._size = size
        return self._array[:size]


class _Words:
    """Every word seen."""

    def __init__(self) -> None:
        self._columns = (_Column(np.uint64), _Column(np.float64), _Column(np.int64), _Column(np.float64))
        self._new: tuple[list[int], list[float], list[int], list[float]] = ([], [], [0], [])
        self._words = self._features = 0

    def add(self, word: str) -> int:
        """Its number."""
        hashes, shares, bounds, weights = self._new
        word = word[:LONGEST_WORD]
        framed = f"<{word}>"
        grams = [framed[at : at + 3] for at in range(len(framed) - 2)] if len(word) > 2 else []
        hashes += [_hash("w" + word), *(_hash("g" + gram) for gram in grams)]
        shares += [1.0, *[GRAM_WEIGHT / len(grams) ** 0.5 for _ in grams]]
        self._features += 1 + len(grams)
        bounds.append(self._features)
        weights.append(SHORT_WORDS.get(len(word), 1.0) if word.isascii() else 1.0)
        self._words += 1
        return self._words - 1

    def table(self) -> _Table:
        """Of all words so far; words added later do not change it."""
        new: list[list[Any]] = list(self._new)
        table = _Table(*(column.extend(added) for column, added in zip(self._columns, new, strict=True)))
        self._new = ([], [], [], [])
        return table


def plain(text: str) -> str:
    """Without case and without typographic variants."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


def _hash(feature: str) -> int:
    raw = hashlib.blake2b(feature.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(raw, "little")


class SentenceEmbedder:
    """A model of sentence-transformers, by folder or id, pinned by a hash of its weights."""

    name = "sentence-transformers"

    def __init__(self, model: str) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ConfigError(
                "embedder.kind is sentence-transformers, which is not installed",
                hint="pip install 'memory-cdc[embed]', or set embedder.kind = \"hash\"",
            ) from error
        try:
            self._model: Any = SentenceTransformer(model)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"embedder.model = {model!r} cannot be loaded: {error}", hint="name the folder of a model, or its id"
            ) from error
        self.dimension = int(self._model.get_sentence_embedding_dimension())
        self.pin = f"{Path(model).name}-{self._weights()}"
        self._lock = threading.Lock()

    def _weights(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in sorted(self._model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().float().numpy().tobytes())
        return digest.hexdigest()[:16]

    def embed(self, texts: Sequence[str]) -> Vectors:
        """(n, dimension)."""
        with self._lock:
            vectors = self._model.encode(list(texts), convert_to_numpy=True, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32).reshape(len(texts), self.dimension)
