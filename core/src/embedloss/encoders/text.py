"""From texts to tokens and from tokens to tensors. No weights here: these objects travel into data-loader workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

UNLIMITED = 2**31 - 1
# Texts tokenised at a time for a static encoder: what the tokenizer makes of them takes some kilobytes a text, and with many
# texts that is fresh memory, a tenth of the time.
AT_ONCE = 1024


@dataclass(frozen=True)
class Tokens:
    """The tokens of one text, or of one pair of texts; `len` counts them.

    Args:
        ids: (n,) int32 token ids, special tokens included.
        types: (n,) int32 token type ids, or None where the model has none or all are 0.
        prompt: how many of the first tokens belong to the prompt.
    """

    ids: np.ndarray
    types: np.ndarray | None = None
    prompt: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def key(self) -> tuple[bytes, bytes, int]:
        """Equal for texts that a model cannot tell apart."""
        return self.ids.tobytes(), b"" if self.types is None else self.types.tobytes(), self.prompt


class TextProcessor:
    """Tokenises for a transformer and pads on the right.

    Args:
        tokenizer: a tokenizer of transformers.
        max_length: longer texts are cut, special tokens included.
        marks_prompt: give the number of prompt tokens to the encoder, which then leaves them out of the pooling.
    """

    chunked = True
    """Whether a batch is cut into chunks of similar length; without padding there is nothing to gain from it."""

    def __init__(self, tokenizer: Any, max_length: int, marks_prompt: bool = False) -> None:
        self.tokenizer, self.max_length, self.marks_prompt = tokenizer, max_length, marks_prompt
        self._prompt_lengths: dict[str, int] = {}

    def tokenize(self, texts: Sequence[str], prompt: str = "") -> list[Any]:
        """One item a text, the prompt put before each, cut to `max_length` tokens; `len(item)` is the number of tokens."""
        if not texts:
            return []
        marked = self.prompt_length(prompt) if prompt and self.marks_prompt else 0
        return [Tokens(ids, types, marked) for ids, types in self._call([prompt + text for text in texts])]

    def prompt_length(self, prompt: str) -> int:
        """Number of tokens of the prompt at the beginning of a text: its own tokens without a closing special token."""
        if prompt not in self._prompt_lengths:
            ids = self._call([prompt])[0][0]
            closing = int(ids[-1]) in self.tokenizer.all_special_ids
            self._prompt_lengths[prompt] = len(ids) - closing
        return self._prompt_lengths[prompt]

    def pad(self, items: Sequence[Any]) -> dict[str, Tensor]:
        """One chunk: input_ids and attention_mask, (texts, longest) int64; token_type_ids, prompt_length where needed."""
        longest = max(len(item) for item in items)
        ids = np.full((len(items), longest), pad_id(self.tokenizer), dtype=np.int64)
        mask = np.zeros((len(items), longest), dtype=np.int64)
        types = np.zeros((len(items), longest), dtype=np.int64)
        for row, item in enumerate(items):
            ids[row, : len(item)] = item.ids
            mask[row, : len(item)] = 1
            if item.types is not None:
                types[row, : len(item)] = item.types
        features = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        if "token_type_ids" in self.tokenizer.model_input_names:
            features["token_type_ids"] = torch.from_numpy(types)
        if self.marks_prompt:
            features["prompt_length"] = torch.tensor([item.prompt for item in items])
        return features

    def _call(self, *texts: list[str]) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """Ids and type ids of each text, or of each pair of texts."""
        truncation = self.max_length < UNLIMITED
        found = self.tokenizer(
            *texts,
            truncation=truncation,
            max_length=self.max_length if truncation else None,
            padding=False,
            return_attention_mask=False,
            verbose=False,
        )
        types = found.get("token_type_ids") or [None] * len(found["input_ids"])
        return [
            # A tokenizer without special tokens makes no token at all of an empty text, but a model needs one.
            (
                np.array(i or [pad_id(self.tokenizer)], dtype=np.int32),
                np.array(t, dtype=np.int32) if i and t and any(t) else None,
            )
            for i, t in zip(found["input_ids"], types, strict=True)
        ]


def pad_id(tokenizer: Any) -> int:
    """The tokenizer's id for padding; where it has none, that of the end of a text, else 0."""
    return int(next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None))


class StaticProcessor:
    """Tokenises for a static encoder: no special tokens, no padding, one flat list of ids.

    Args:
        tokenizer: a `tokenizers.Tokenizer`. Its truncation is the maximal length, so it is saved with it.
        max_length: longer texts are cut; None keeps what the tokenizer has.
    """

    chunked = False
    marks_prompt = False

    def __init__(self, tokenizer: Any, max_length: int | None = None) -> None:
        self.tokenizer = tokenizer
        tokenizer.no_padding()
        if max_length is not None:
            tokenizer.enable_truncation(max_length)

    @property
    def max_length(self) -> int:
        """Maximal number of tokens of a text."""
        truncation = self.tokenizer.truncation
        return int(truncation["max_length"]) if truncation else UNLIMITED

    def tokenize(self, texts: Sequence[str], prompt: str = "") -> list[Any]:
        """One item a text; a text without any known word has length 0."""
        made: list[Any] = []
        for begin in range(0, len(texts), AT_ONCE):
            block = [prompt + text for text in texts[begin : begin + AT_ONCE]]
            found = self.tokenizer.encode_batch_fast(block, add_special_tokens=False)
            made += [Tokens(np.array(encoding.ids, dtype=np.int32)) for encoding in found]
        return made

    def pad(self, items: Sequence[Any]) -> dict[str, Tensor]:
        """input_ids, (tokens,) of all texts one after the other, and offsets, (texts,), where each text begins."""
        lengths = np.array([0, *(len(item) for item in items)], dtype=np.int64)
        ids = np.concatenate([item.ids for item in items]) if len(items) else np.zeros(0)
        return {"input_ids": torch.from_numpy(ids.astype(np.int64)), "offsets": torch.from_numpy(lengths.cumsum()[:-1])}
