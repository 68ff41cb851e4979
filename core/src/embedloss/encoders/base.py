"""What all encoders share: `Encoder`, and the cutting of a batch into chunks of similar length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from embedloss.allocator import Trim
from embedloss.encoders.lean import lean
from embedloss.encoders.lookup import Lookups, shared_lookups
from embedloss.encoders.modules import Normalize
from embedloss.encoders.recompute import Recomputed
from embedloss.encoders.text import StaticProcessor, TextProcessor
from embedloss.errors import EmbedlossError

# Tokens of a chunk in `encode`: enough that the fixed costs of a chunk vanish; on a CPU few enough for its cache.
CHUNK_TOKENS, CPU_CHUNK_TOKENS = 8192, 1024
# Texts tokenised at a time in `encode`, so that a corpus is never held as tokens.
BLOCK = 16384
# Gives freed memory back to the system after so many tokens; a chunk's tensors rarely fit where those of a shorter one were.
TRIM = Trim(1 << 12)
# Padding that costs less than the fixed costs of one more chunk, in tokens.
FREE_PADDING = 128


def training_chunk() -> int:
    """Padded tokens of a chunk in training, if none are named: 16,384 with a GPU; on a CPU 256 a thread, at least 512.

    Short chunks have less padding and less memory, and a few hundred tokens keep a few cores busy.
    """
    return 16384 if torch.cuda.is_available() else min(max(256 * torch.get_num_threads(), 512), 2048)


class Encoder(nn.Module):
    """A model that turns texts into embeddings.

    Args:
        processor: tokenises and pads; holds no weights.
        settings: content of config_sentence_transformers.json; kept, and saved again.
    """

    kind: str = "bi-encoder"
    dimension: int
    n_layers: int = 0

    def __init__(self, processor: TextProcessor | StaticProcessor, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.processor = processor
        self.settings: dict[str, Any] = dict(settings or {})
        self.prompts: dict[str, str] = dict(self.settings.get("prompts") or {})

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def usual_chunk(self) -> int:
        """Tokens of a chunk in `encode`, if none are named."""
        return CPU_CHUNK_TOKENS if self.device.type == "cpu" else CHUNK_TOKENS

    @property
    def similarity(self) -> str:
        """The similarity that the model was made for: cosine unless its folder says otherwise."""
        return str(self.settings.get("similarity_fn_name") or "cosine")

    @property
    def normalizes(self) -> bool:
        """Whether every embedding has length 1."""
        return any(isinstance(module, Normalize) for module in list(getattr(self, "after", ()))[-1:])

    def forward(self, features: dict[str, Tensor], layers: bool = False) -> Any:
        """Embeddings of one chunk, (texts, dimension); with `layers` a list of them, embedding layer first, final last."""
        raise NotImplementedError

    def save(self, folder: str | Path) -> None:
        """Write the encoder to a folder that `load_encoder` and sentence-transformers open."""
        raise NotImplementedError

    def encode(
        self,
        texts: Sequence[str],
        *,
        prompt: str = "",
        chunk_tokens: int | None = None,
        normalize: bool = False,
        show_progress: bool | str = False,
        truncate_dim: int | None = None,
    ) -> np.ndarray:
        """Embeddings of texts, (texts, dimension) float32, in the order of the texts; without dropout.

        Args:
            texts: a list of texts; a single text counts as a list of one.
            prompt: put before every text (the prompt itself, not its name).
            chunk_tokens: tokens of a chunk, padding included; the result does not depend on it.
            normalize: scale every embedding to length 1, after truncation.
            show_progress: a progress bar on stderr; a text is its name.
            truncate_dim: keep the first components only.
        """
        found = self._encode(texts, (None,), prompt, chunk_tokens, normalize, show_progress, truncate_dim)
        return found[None]

    def encode_layers(
        self,
        texts: Sequence[str],
        layers: Sequence[int | None],
        *,
        prompt: str = "",
        chunk_tokens: int | None = None,
        show_progress: bool | str = False,
    ) -> dict[int | None, np.ndarray]:
        """Embeddings from several layers in one pass: layer -> (texts, dimension) float32.

        Args:
            texts: a list of texts.
            layers: numbers of layers, 0 for the word embeddings; None is the encoder's own output.
            prompt: put before every text.
            chunk_tokens: tokens of a chunk, padding included.
            show_progress: a progress bar on stderr; a text is its name.
        """
        return self._encode(texts, layers, prompt, chunk_tokens, False, show_progress, None)

    @torch.inference_mode()
    def _encode(
        self,
        texts: Sequence[str],
        layers: Sequence[int | None],
        prompt: str,
        chunk_tokens: int | None,
        normalize: bool,
        show_progress: bool | str,
        truncate_dim: int | None,
    ) -> dict[int | None, np.ndarray]:
        texts = [texts] if isinstance(texts, str) else list(texts)
        check_texts(texts)
        width = min(truncate_dim or self.dimension, self.dimension)
        result = {layer: np.zeros((len(texts), width), dtype=np.float32) for layer in layers}
        several = any(layer is not None for layer in layers)
        training = self.training
        self.eval()
        bar = progress_bar(len(texts), show_progress) if show_progress else None
        try:
            for begin in range(0, len(texts), BLOCK):
                items = self.processor.tokenize(texts[begin : begin + BLOCK], prompt)
                lengths = [len(item) for item in items]
                plan = (
                    plan_chunks(lengths, chunk_tokens or self.usual_chunk)
                    if self.processor.chunked
                    else [list(range(len(items)))]
                )
                for chunk in plan:
                    features = {k: v.to(self.device) for k, v in self.processor.pad([items[i] for i in chunk]).items()}
                    outputs = self(features, several)
                    for layer in layers:
                        embeddings = outputs if not several else outputs[-1 if layer is None else layer]
                        embeddings = embeddings.float()[:, :width]
                        if normalize:
                            embeddings = nn.functional.normalize(embeddings, dim=-1)
                        result[layer][begin + np.array(chunk)] = embeddings.cpu().numpy()
                    if bar is not None:
                        bar.update(len(chunk))
        finally:
            self.train(training)
            if bar is not None:
                bar.close()
        return result


def check_texts(texts: Sequence[Any]) -> None:
    """E104 unless all are texts."""
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise EmbedlossError("E104", f"text {row + 1} is no text but {type(text).__name__}.")


def progress_bar(total: int, name: bool | str = True) -> Any:
    """A progress bar that counts texts; under another bar it vanishes when it is full."""
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=name if isinstance(name, str) else "encode", unit="text", leave=None, dynamic_ncols=True)


def plan_chunks(lengths: Sequence[int], chunk_tokens: int) -> list[list[int]]:
    """Cut texts into chunks of similar length.

    Args:
        lengths: tokens of each text.
        chunk_tokens: bound of a chunk's texts times its longest text; a longer text gets a chunk of its own.

    Returns:
        Indices of the texts, chunk by chunk, shortest texts first, equal lengths in the order given. A chunk also ends
        where its padding would exceed an eighth of its tokens, so an outlier widens its own chunk only.
    """
    chunks: list[list[int]] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        length = lengths[index]
        if chunks:
            padded = (len(chunks[-1]) + 1) * length
            tokens += length
            if padded <= chunk_tokens and padded - tokens <= max(FREE_PADDING, tokens / 8):
                chunks[-1].append(index)
                continue
        chunks.append([index])
        tokens = length
    return chunks


def smaller_chunks(chunks: list[dict[str, Tensor]], chunk_tokens: int, padding: int) -> list[dict[str, Tensor]]:
    """The same texts in chunks of at most `chunk_tokens`, in the same order: as if they had been cut so from the start.

    Args:
        chunks: of `plan_chunks`, padded on the right.
        chunk_tokens: as in `plan_chunks`.
        padding: the token id of padding.
    """
    if any(chunk["input_ids"].ndim != 2 for chunk in chunks):
        return chunks  # a static encoder's texts have no padding and are one lookup
    longest = max(chunk["input_ids"].shape[1] for chunk in chunks)
    joined = {
        name: torch.cat(
            [
                nn.functional.pad(c[name], (0, longest - c[name].shape[1]), value=padding if name == "input_ids" else 0)
                if c[name].ndim == 2
                else c[name]
                for c in chunks
            ]
        )
        for name in chunks[0]
    }
    lengths = joined["attention_mask"].sum(1).tolist()
    made = []
    for texts in plan_chunks(lengths, chunk_tokens):
        width = max(lengths[i] for i in texts)
        made.append({name: value[texts][:, :width] if value.ndim == 2 else value[texts] for name, value in joined.items()})
    return made


def encode_chunks(
    encoder: nn.Module, chunks: list[dict[str, Tensor]], place: Tensor, *, recompute: bool = False, layers: bool = False
) -> Any:
    """Embeddings of all texts of a batch, chunk after chunk.

    Args:
        encoder: an `Encoder`, possibly wrapped.
        chunks: the padded chunks, on the encoder's device.
        place: (texts,) place[i] is the row of text i among all encoded, chunk after chunk; texts may share a row.
        recompute: keep the activations of the last chunk only; those of the others are computed again in the backward
            pass, with the same dropout. Same gradients, up to a third more work, the memory of one chunk.
        layers: embeddings of every layer.

    Returns:
        (texts, dimension), or a list of them, one a layer.
    """
    (results,) = encode_parts(encoder, chunks, place, [len(place)], recompute=recompute, layers=layers)
    return results if layers else results[0]


def encode_parts(
    encoder: nn.Module,
    chunks: list[dict[str, Tensor]],
    place: Tensor,
    sizes: Sequence[int],
    *,
    recompute: bool = False,
    layers: bool = False,
) -> list[list[Tensor]]:
    """`encode_chunks` for texts that are wanted apart, as those of several roles are.

    Args:
        encoder: this and those without a line as there.
        sizes: of the parts, in order; they sum to the number of texts.

    Returns:
        Of each part a list of (texts, dimension), one a layer.
    """
    place = place.to(chunks[0]["input_ids"].device)
    encode = partial(_encode, encoder, layers)
    recompute = recompute and torch.is_grad_enabled()
    if recompute and Recomputed.suits(encoder, chunks):
        return Recomputed(encoder, encode, chunks, place, sizes).embeddings()
    lookups = shared_lookups(encoder) if len(chunks) > 1 else None
    again = len(chunks) - 1 if recompute else 0
    outputs = [checkpoint(encode, chunk, lookups, use_reentrant=False) for chunk in chunks[:again]]
    with lean(encoder) if torch.is_grad_enabled() and not torch.compiler.is_compiling() else nullcontext():
        outputs += [encode(chunk, lookups) for chunk in chunks[again:]]
    results = [torch.cat(parts).index_select(0, place) for parts in zip(*outputs, strict=True)]
    ends = list(accumulate(sizes))
    return [[layer[begin:end] for layer in results] for begin, end in zip([0, *ends], ends, strict=False)]


def _encode(encoder: nn.Module, layers: bool, chunk: dict[str, Tensor], lookups: Lookups | None) -> list[Tensor]:
    """One chunk, a tensor a layer; also what a recomputation runs again."""
    if not chunk["input_ids"].is_cuda:
        TRIM(chunk["input_ids"].numel())
    with lookups.used() if lookups is not None else nullcontext():
        made = encoder(chunk, layers)
    return made if layers else [made]


def draws(model: nn.Module) -> bool:
    """Whether equal texts may get different embeddings in training: a dropout, as a module or by the model's config."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        settings = config.to_dict() if hasattr(config, "to_dict") else {}
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            return True
        if any("drop" in name and isinstance(value, (int, float)) and value > 0 for name, value in settings.items()):
            return True
    return False
