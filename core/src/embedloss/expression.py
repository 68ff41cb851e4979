"""Losses as text: `matryoshka(mnrl(scale=20), dims=[384, 128]) + 0.05 * gor()`.

The text is parsed with `ast`, never evaluated: names, calls with literal arguments, `+` and `*` are the whole grammar.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from typing import Any, NoReturn

from embedloss.errors import EmbedlossError

# A hyphen inside a name ("gist-embed") and not in a string or a number becomes an underscore; the length stays the same,
# so that columns in messages are the user's.
_HYPHEN = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?<=[A-Za-z0-9_])-(?=[A-Za-z0-9])""")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Call:
    """A name with arguments; each argument is a literal or again a `Call` or a `Sum`."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    column: int = 1


@dataclass(frozen=True)
class Sum:
    """Weighted terms; a weight is a number or a `Call` (a schedule)."""

    terms: tuple[tuple[float | Call, Call | Sum], ...]
    column: int = 1


def one_line(text: str) -> str:
    """The text that columns count in: a folded YAML value has line breaks."""
    return " ".join(text.split()) if "\n" in text.strip() else text


def pointed(text: str, column: int) -> str:
    """Say "at column 8", then the expression, and a pointer below that column."""
    return f"at column {column}\n  {text}\n  {' ' * (column - 1)}^"


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = one_line(text)

    def error(self, message: str, column: int) -> NoReturn:
        raise EmbedlossError("E202", f"{message} {pointed(self.text, column)}")

    def parse(self) -> Call | Sum:
        if not self.text.strip():
            raise EmbedlossError("E202", 'the loss expression is empty; type a loss such as "mnrl(scale=20)".')
        protected = _HYPHEN.sub(lambda m: m.group(1) or "_", self.text)
        protected = self._undo_numbers(protected)
        try:
            tree = ast.parse(protected.rstrip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as exception:
            column = getattr(exception, "offset", None) or 1
            message = getattr(exception, "msg", None) or "not an expression"
            self.error(f"cannot be parsed: {message}", min(max(column, 1), len(self.text) + 1))
        return self.node(tree.body)

    def _undo_numbers(self, protected: str) -> str:
        # "1e-3" and "[384-1]" keep their hyphen: only a hyphen whose left word starts with a letter belongs to a name.
        characters = list(protected)
        for i, (old, new) in enumerate(zip(self.text, protected, strict=True)):
            if old == "-" and new == "_":
                begin = i
                while begin > 0 and (characters[begin - 1].isalnum() or characters[begin - 1] == "_"):
                    begin -= 1
                if not characters[begin].isalpha():
                    characters[i] = "-"
        return "".join(characters)

    def node(self, tree: ast.AST) -> Call | Sum:
        column = getattr(tree, "col_offset", 0) + 1
        if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add):
            terms = [*self.terms(tree.left), *self.terms(tree.right)]
            return Sum(tuple(terms), column)
        if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Mult):
            return Sum(tuple(self.terms(tree)), column)
        if isinstance(tree, ast.BinOp):
            self.error("only + and * combine losses; found another operator", column)
        if isinstance(tree, ast.Call):
            return self.call(tree)
        if isinstance(tree, ast.Name):
            return Call(tree.id, column=column)
        self.error("expected the name of a loss", column)

    def terms(self, tree: ast.AST) -> list[tuple[float | Call, Call | Sum]]:
        column = getattr(tree, "col_offset", 0) + 1
        if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add):
            return [*self.terms(tree.left), *self.terms(tree.right)]
        if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Mult):
            left, right = self.number(tree.left), self.number(tree.right)
            if left is not None and right is not None:
                self.error("a product needs a loss on one side", column)
            if left is not None:
                return self.weighted(left, tree.right, column)
            if right is not None:
                return self.weighted(right, tree.left, column)
            if isinstance(tree.left, ast.Call):  # schedule(...) * loss
                return self.weighted(self.call(tree.left), tree.right, column)
            self.error("a product needs a number or a schedule on its left side", column)
        return [(1.0, self.node(tree))]

    def weighted(self, weight: float | Call, tree: ast.AST, column: int) -> list[tuple[float | Call, Call | Sum]]:
        inner = self.node(tree)
        if isinstance(inner, Sum) and len(inner.terms) == 1 and isinstance(weight, float):
            [(inside, term)] = inner.terms
            if isinstance(inside, float):
                return [(weight * inside, term)]
        return [(weight, inner)]

    def number(self, tree: ast.AST) -> float | None:
        if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
            value = self.number(tree.operand)
            return None if value is None else -value
        if isinstance(tree, ast.Constant) and isinstance(tree.value, (int, float)) and not isinstance(tree.value, bool):
            return float(tree.value)
        return None

    def call(self, tree: ast.Call) -> Call:
        column = tree.col_offset + 1
        if not isinstance(tree.func, ast.Name):
            self.error("expected the name of a loss", column)
        args = tuple(self.argument(a) for a in tree.args)
        kwargs: dict[str, Any] = {}
        for keyword in tree.keywords:
            if keyword.arg is None:
                self.error("** is not allowed", keyword.value.col_offset + 1)
            if keyword.arg in kwargs:
                self.error(f"parameter '{keyword.arg}' is given twice", keyword.value.col_offset + 1)
            kwargs[keyword.arg] = self.argument(keyword.value)
        return Call(tree.func.id, args, kwargs, column)

    def argument(self, tree: ast.AST) -> Any:
        if isinstance(tree, (ast.Call, ast.Name, ast.BinOp)):
            return self.node(tree)
        if isinstance(tree, ast.Starred):
            self.error("* is not allowed", tree.col_offset + 1)
        try:
            return ast.literal_eval(tree)  # type: ignore[arg-type]
        except (ValueError, TypeError):
            self.error("an argument must be a number, a string, a list or a loss", getattr(tree, "col_offset", 0) + 1)


def parse(text: str) -> Call | Sum:
    """Parse an expression. An `EmbedlossError` (E202) points at the column of a mistake."""
    if _NAME.fullmatch(text.strip()):
        return Call(text.strip())
    return _Parser(text).parse()


def literal(value: Any) -> str:
    """A parameter as text that `parse` reads back to an equal value."""
    if isinstance(value, (list, tuple)):
        inside = ", ".join(literal(v) for v in value)
        return f"[{inside}]" if isinstance(value, list) else f"({inside},)" if len(value) == 1 else f"({inside})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(k)}: {literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise EmbedlossError("E203", f"{value} cannot be written in an expression.")
        return repr(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if value is None or isinstance(value, (bool, int, str)):
        return repr(value)
    if hasattr(value, "to_expression"):
        return str(value.to_expression())
    raise EmbedlossError("E203", f"a parameter of type {type(value).__name__} cannot be written in an expression.")
