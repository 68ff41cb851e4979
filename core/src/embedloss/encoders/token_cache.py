"""Tokens of texts that were tokenised before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# What one entry takes beside its characters and ids: the objects themselves.
OVERHEAD = 300


class TokenCache:
    """Tokenises every text once, across batches and epochs, as long as the tokens fit.

    It fills up to its bound and then keeps what it has: with a bound below one epoch, dropping the oldest would drop every text
    just before it comes again. Copies for other processes begin empty.

    Args:
        most: bytes it may take, about.
    """

    def __init__(self, most: int = 1 << 26) -> None:
        self.most, self.size = most, 0
        self._items: dict[tuple[int, str], dict[str, Any]] = {}

    def tokenize(self, processor: Any, texts: Sequence[str], prompt: str) -> list[Any]:
        """What `processor.tokenize(texts, prompt)` gives; the processor must live as long as this cache."""
        known = self._items.setdefault((id(processor), prompt), {})
        new = [text for text in dict.fromkeys(texts) if text not in known]
        made = dict(zip(new, processor.tokenize(new, prompt) if new else (), strict=True))
        found = [made[text] if text in made else known[text] for text in texts]
        for text, item in made.items():
            if self.size >= self.most:
                break
            known[text] = item
            self.size += OVERHEAD + len(text) + item.ids.nbytes
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {"most": self.most, "size": 0, "_items": {}}
