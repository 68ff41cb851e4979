"""Demo data without a download: docstrings of the Python packages on this machine, read with `ast` and never imported."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROWS = 30_000
MODULE_ROWS = 4_000  # so that no single package is most of the data
TEST_SHARE = 0.15
_QUERY_WORDS, _DOCUMENT_WORDS = 4, 8
_DOCUMENT_CHARACTERS = 2_000
_FILE_BYTES = 300_000
_FILES_AT_A_TIME = 128
_SKIPPED = {
    "test",
    "tests",
    "testing",
    "_vendor",
    "vendor",
    "third_party",
    "node_modules",
    "__pycache__",
    "site-packages",
    "lib2to3",
    "conftest",
}
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`'\"(*:\[-])|\n\s*\n")
_WORD = re.compile(r"[A-Za-z]{2,}")


@dataclass(frozen=True)
class Pair:
    """A first sentence, the rest of its docstring, and the top-level module they come from."""

    anchor: str
    positive: str
    module: str


def _hash(text: str) -> str:
    return hashlib.sha1(text.encode("utf-8", "replace")).hexdigest()


def _key(text: str) -> str:
    return " ".join(_WORD.findall(text.lower()))


def source_files(*roots: Path) -> dict[str, list[Path]]:
    """Top-level module -> its source files; tests are left out.

    Args:
        roots: folders of modules; by default the standard library and the installed packages.
    """
    found: dict[str, list[Path]] = {}
    installed = (sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    for root in dict.fromkeys(roots or (Path(path) for path in installed if path)):
        for file in sorted(root.rglob("*.py")):
            parts = file.relative_to(root).parts
            if _SKIPPED.intersection(parts) or any(part.startswith("test_") or part.endswith("_test.py") for part in parts):
                continue
            found.setdefault(parts[0].removesuffix(".py"), []).append(file)
    return found


def docstrings(file: Path) -> Iterator[str]:
    """Docstrings of a source file: of the module, its classes and functions."""
    try:
        if file.stat().st_size > _FILE_BYTES:
            return
        source = file.read_bytes()
        # Parsing is all the time this takes: leave out files with less than one docstring in 3 kB.
        if (source.count(b'"""') + source.count(b"'''")) // 2 < max(1, len(source) // 3_000):
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield inspect.cleandoc(text)
            stack.extend(reversed(node.body))
        elif isinstance(node, (ast.If, ast.Try, ast.With)):
            stack.extend(reversed(node.body))


def split_docstring(text: str) -> tuple[str, str] | None:
    """First sentence and rest, or None where one of them is too short to mean something."""
    parts = _SENTENCE_END.split(text.strip(), maxsplit=1)
    if len(parts) != 2:
        return None
    query, document = (" ".join(part.split()) for part in parts)
    if len(document) > _DOCUMENT_CHARACTERS:
        document = document[:_DOCUMENT_CHARACTERS].rsplit(" ", 1)[0]
    if len(_WORD.findall(query)) < _QUERY_WORDS or len(query) > 200 or len(_WORD.findall(document)) < _DOCUMENT_WORDS:
        return None
    if sum(c.isalpha() or c.isspace() for c in document) < 0.6 * len(document) or _key(query) in _key(document):
        return None
    return query, document


def file_pairs(file: Path) -> list[tuple[str, str]]:
    """First sentences and rests of one file."""
    return [split for text in docstrings(file) if (split := split_docstring(text)) is not None]


def demo_pairs() -> tuple[list[Pair], list[Pair]]:
    """Training and test pairs: no module is on both sides, and no text occurs twice.

    The same installation gives the same pairs. Modules are taken in the order of a hash, each up to `MODULE_ROWS`, until
    there are `ROWS` pairs; they go to the test side as long as it holds less than 15 % of all pairs.
    """
    files = source_files()
    queries: set[str] = set()
    documents: set[str] = set()
    by_module: dict[str, list[Pair]] = {}
    total = 0
    with ProcessPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        for module in sorted(files, key=_hash):
            order = sorted(files[module], key=lambda f: (_hash("/".join(f.parts[-3:])), str(f)))
            pairs: list[Pair] = []
            for begin in range(0, len(order), _FILES_AT_A_TIME):
                batch = order[begin : begin + _FILES_AT_A_TIME]
                found = pool.map(file_pairs, batch, chunksize=16) if len(batch) > 16 else map(file_pairs, batch)
                for query, document in (pair for several in found for pair in several):
                    keys = _key(query), _key(document)
                    if keys[0] not in queries and keys[1] not in documents and len(pairs) < MODULE_ROWS:
                        queries.add(keys[0])
                        documents.add(keys[1])
                        pairs.append(Pair(query, document, module))
                if len(pairs) == MODULE_ROWS:
                    break
            if pairs:
                by_module[module] = pairs
                total += len(pairs)
            if total >= ROWS:
                break
    train: list[Pair] = []
    test: list[Pair] = []
    wanted = int(TEST_SHARE * min(total, ROWS))
    for pairs in by_module.values():
        (test if len(test) + len(pairs) <= wanted else train).extend(pairs)

    def shuffled(side: list[Pair]) -> list[Pair]:
        return sorted(side, key=lambda pair: _hash(pair.anchor))

    return shuffled(train)[: ROWS - wanted], shuffled(test)


def write_demo_data(folder: Path) -> dict[str, int]:
    """Write train.jsonl, test.jsonl (anchor, positive, module) and docs.jsonl (text, module; the documents of the test side).

    Returns:
        Rows of each file and modules of each side.
    """
    train, test = demo_pairs()
    folder.mkdir(parents=True, exist_ok=True)
    sides = {"train.jsonl": [vars(p) for p in train], "test.jsonl": [vars(p) for p in test]}
    sides["docs.jsonl"] = [{"text": f"{p.anchor} {p.positive}", "module": p.module} for p in test]
    for name, rows in sides.items():
        with (folder / name).open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(row, ensure_ascii=True) + "\n" for row in rows)
    counts = {name: len(rows) for name, rows in sides.items()}
    return {**counts, "train modules": len({p.module for p in train}), "test modules": len({p.module for p in test})}
