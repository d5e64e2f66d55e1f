"""Real texts that every machine has: the documentation strings of Python's standard library.

The sources are read, never imported. The order is that of the sorted paths and of the lines, so the same Python gives
the same texts.
"""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cdc.errors import PreconditionError

SKIPPED = frozenset({"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"})  # not for readers
SHORTEST = 20  # characters; less is no text
ENOUGH = 1000  # texts; any installation with sources has thousands

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Text(NamedTuple):
    """`name` is dotted, as `json.decoder.JSONDecoder`; `kind` is module, class or function."""

    name: str
    kind: str
    content: str


def standard_library(root: Path | None = None) -> list[Text]:
    """Each text once. Raises PreconditionError where the library's sources are not installed."""
    folder = root or Path(sysconfig.get_path("stdlib"))
    texts: dict[str, Text] = {}
    for path in sorted(folder.rglob("*.py")):
        if not SKIPPED.intersection(path.relative_to(folder).parts):
            for text in _of_file(path, _module(path.relative_to(folder))):
                texts.setdefault(text.content, text)
    if len(texts) < ENOUGH:
        raise PreconditionError(
            f"the sources of Python's standard library are not in {folder}, so there is nothing to show",
            hint="use a Python that comes with its sources, like those of python.org, Debian or uv",
        )
    return list(texts.values())


def _module(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _of_file(path: Path, module: str) -> Iterator[Text]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in others' strings are none of our business
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            return  # templates for code generators are no Python
    yield from _of_node(tree, module)


def _of_node(node: _Documented, name: str) -> Iterator[Text]:
    content = ast.get_docstring(node)
    if content and len(content) >= SHORTEST and "\0" not in content:  # PostgreSQL's text holds no NUL
        yield Text(name, _kind(node), content)
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _of_node(child, f"{name}.{child.name}")


def _kind(node: _Documented) -> str:
    if isinstance(node, ast.Module):
        return "module"
    return "class" if isinstance(node, ast.ClassDef) else "function"
