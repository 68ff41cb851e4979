"""Checks of constructor parameters, for `Loss.keep`: each takes a parameter's name and value, and returns the value to keep or
raises ValueError, which says what is allowed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

from embedloss.activations import activation_name, chosen
from embedloss.similarity import distance_name, similarity_name

Check = Callable[[str, Any], Any]


def must_be(words: str, allowed: Callable[[Any], bool]) -> Check:
    """A value for which `allowed` is true; `words` say in the message what that is."""

    def check(name: str, value: Any) -> Any:
        if not allowed(value):
            raise ValueError(f"{name} must be {words}, got {value!r}")
        return value

    return check


def is_whole(value: Any, least: float = -math.inf) -> bool:
    """True for an integer of at least `least` (True and False are none)."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


positive = must_be("above 0 and finite", lambda value: not isinstance(value, bool) and 0 < value < math.inf)
finite = must_be("finite", lambda value: -math.inf < value < math.inf)
not_negative = must_be("at least 0 and finite", lambda value: 0 <= value < math.inf)
share = must_be("from 0 to 1", lambda value: 0 <= value <= 1)
whole = must_be("an integer", is_whole)
count = must_be("a positive integer", lambda value: is_whole(value, 1))


def optional(check: Check) -> Check:
    """None, or what `check` allows."""
    return lambda name, value: None if value is None else check(name, value)


def callable_or(check: Check) -> Check:
    """A function, or what `check` allows."""
    return lambda name, value: value if callable(value) else check(name, value)


def one_of(*allowed: Any) -> Check:
    """One of these values."""
    return must_be(f"one of {', '.join(map(str, allowed))}", lambda value: value in allowed)


def named(choices: Collection[str], aliases: Mapping[str, str] | None = None) -> Check:
    """One of `choices` by name, or a function or class of that name; see `activations.chosen`."""
    return lambda name, value: chosen(value, choices, name, aliases)


def _without_effect(name: str, value: Any) -> Any:
    if value:
        warnings.warn(f"{name} has no effect: chunks are the encoder's (chunk_tokens, recompute).", stacklevel=4)
    return value


# What these names mean in every loss.
COMMON: dict[str, Check] = {
    "similarity_fct": lambda _, value: similarity_name(value),
    "distance": lambda _, value: distance_name(value),
    "activation_fn": optional(lambda name, value: activation_name(value, name)),
    "scale": positive,
    "reduction": one_of("mean", "sum"),
    "mini_batch_size": _without_effect,
    "mini_batch_num_tokens": _without_effect,
    "show_progress_bar": _without_effect,
}
