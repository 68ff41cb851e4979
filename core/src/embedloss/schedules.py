"""Weights of a sum that change with the step: `linear(0, 0.1, steps=1000) * gor()`."""

from __future__ import annotations

import math

from embedloss.expression import literal


class Schedule:
    """A number that depends on the step."""

    def __init__(self, start: float, end: float, steps: int) -> None:
        if int(steps) != steps or steps < 1:
            raise ValueError(f"steps must be a positive integer, got {steps}")
        self.start, self.end, self.steps = float(start), float(end), int(steps)

    def at(self, step: int) -> float:
        """The value at a step; before 0 it is `start`, after `steps` it is `end`."""
        return self.start + (self.end - self.start) * self.shape(min(max(step / self.steps, 0.0), 1.0))

    def shape(self, t: float) -> float:
        """Rise from 0 to 1 for t from 0 to 1."""
        return t

    def to_expression(self) -> str:
        """The text that makes this schedule."""
        name = next(n for n, c in SCHEDULES.items() if c is type(self))
        return f"{name}({literal(self.start)}, {literal(self.end)}, steps={self.steps})"


class Linear(Schedule):
    """A straight line from start to end."""


class Cosine(Schedule):
    """Half a cosine wave from start to end."""

    def shape(self, t: float) -> float:
        """Slow, fast, slow."""
        return (1 - math.cos(math.pi * t)) / 2


SCHEDULES: dict[str, type[Schedule]] = {"linear": Linear, "cosine-schedule": Cosine}
SCHEDULE_NAMES = frozenset(SCHEDULES)
