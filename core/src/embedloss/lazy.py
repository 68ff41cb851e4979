"""Packages whose names are loaded on first use, so that listing losses imports no torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection
from typing import Any


def exports(module: str, names: Collection[str]) -> Callable[[str], Any]:
    """A package's `__getattr__` that takes `names` from `module` when one of them is first used.

    Args:
        module: such as "my_package.losses"; imported then, not before.
        names: the package's `__all__`.
    """

    def find(name: str) -> Any:
        if name in names:
            return getattr(importlib.import_module(module), name)
        raise AttributeError(f"module {module.rpartition('.')[0]!r} has no attribute {name!r}")

    return find
