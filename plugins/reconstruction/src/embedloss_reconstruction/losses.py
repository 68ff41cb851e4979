"""The denoising auto-encoder (TSDAE)."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from embedloss.embeddings import Embeddings
from embedloss.errors import EmbedlossError
from embedloss.loss import Loss, LossOutput, ModelInfo, Requirements, Row
from embedloss.validate import callable_or, must_be, one_of
from embedloss_reconstruction.decoder import saved_elsewhere, tied_decoder, untied_decoder
from embedloss_reconstruction.functional import delete_words, padding_last, target_loss
from embedloss_reconstruction.plugin import DENOISING_AUTO_ENCODER

ROLE = "original"
_CHANCE = must_be("at least 0 and below 1", lambda value: 0 <= value < 1)


class DenoisingAutoEncoderLoss(Loss):
    """Negative log-likelihood of a text, given the embedding of a damaged version of it and nothing else.

    A causal decoder reads the original's tokens and attends to a memory of length one, the embedding. The decoder is made by
    `prepare`. Tied, it uses the encoder's parameters themselves: they are optimised once, and `state_dict` leaves them to
    the encoder.

    Args:
        decoder_name_or_path: folder or hub id of the decoder, for `tie_encoder_decoder=False`.
        tie_encoder_decoder: share all weights but cross-attention and the head with the encoder.
        noise: how single texts are damaged: "delete", "none", or in Python a function (text, random.Random) -> text.
        del_ratio: chance of each word to be deleted, from 0 to below 1.

    Paper: Wang et al. 2021, TSDAE, arXiv 2104.06979.
    """

    spec = DENOISING_AUTO_ENCODER
    noise: str | Callable[[str, random.Random], str]

    def __init__(
        self,
        decoder_name_or_path: str | None = None,
        tie_encoder_decoder: bool = True,
        noise: str | Callable[[str, random.Random], str] = "delete",
        del_ratio: float = 0.6,
    ) -> None:
        super().__init__()
        if not tie_encoder_decoder and not decoder_name_or_path:
            raise ValueError("tie_encoder_decoder=False needs decoder_name_or_path")
        if tie_encoder_decoder and decoder_name_or_path:
            warnings.warn("decoder_name_or_path is not used, as the decoder is tied to the encoder", stacklevel=2)
        self.keep(locals(), noise=callable_or(one_of("delete", "none")), del_ratio=_CHANCE)
        self.decoder: Any = None
        self._shared: list[str] = []
        self._translate: tuple[Any, Any] | None = None  # tokenizers of encoder and decoder, where they differ

    def requires(self) -> Requirements:
        """The original's token ids; it is not encoded."""
        return Requirements(tokens=frozenset({ROLE}))

    def transform(self, rows: list[Row], format_name: str, rng: random.Random) -> tuple[list[Row], str]:
        """Single texts become pairs of a damaged and an original text."""
        if format_name != "single":
            return rows, format_name
        changed = [{**row, "damaged": self._damage(row["text"], rng), ROLE: row["text"]} for row in rows]
        for row in changed:
            del row["text"]
        return changed, "source-target"

    def _damage(self, text: str, rng: random.Random) -> str:
        if callable(self.noise):
            return self.noise(text, rng)
        return delete_words(text, self.del_ratio, rng) if self.noise == "delete" else text

    def prepare(self, info: ModelInfo) -> None:
        """Make the decoder. E302 if the encoder is no transformer, or its embeddings do not fit the decoder."""
        if self.decoder is not None:
            return
        backbone: Any = getattr(info.encoder, "model", None)
        if getattr(backbone, "config", None) is None:
            raise self.error("E302", "needs an encoder that is a transformer; static embeddings have no decoder.")
        if self.tie_encoder_decoder:
            decoder = tied_decoder(backbone)
        else:
            assert self.decoder_name_or_path is not None  # the constructor has refused it
            parameter = next(backbone.parameters())
            decoder = untied_decoder(self.decoder_name_or_path).to(device=parameter.device, dtype=parameter.dtype)
            self._translate = _tokenizers(info.encoder, self.decoder_name_or_path)
        if decoder.config.hidden_size != info.dimension:
            reads = f"but the decoder reads {decoder.config.hidden_size}"
            raise EmbedlossError("E302", f"the embeddings have {info.dimension} dimensions, {reads}.")
        self.decoder, self._shared = decoder, saved_elsewhere(decoder, backbone)

    def compute(self, emb: Embeddings, labels: Tensor | None) -> LossOutput:
        """The mean over all target tokens of all texts (of all processes where they are gathered)."""
        if self.decoder is None:
            raise EmbedlossError("E206", "the decoder is not there yet; call prepare(ModelInfo(dimension, encoder)) first.")
        ids, mask = padding_last(*self._tokens(*emb.tokens(ROLE)))
        inputs = ids[:, : max(ids.shape[1] - 1, 1)]
        # A narrower view is read through the first columns of the cross-attention.
        memory = F.pad(emb.own("damaged"), (0, self.decoder.config.hidden_size - emb.own("damaged").shape[1]))
        memory = memory.to(next(self.decoder.parameters()).dtype)
        # No mask: the decoder is causal and padding comes last, so no token sees any.
        logits = self.decoder(input_ids=inputs, encoder_hidden_states=memory[:, None], use_cache=False).logits
        total, counts = target_loss(logits[:, : ids.shape[1] - 1], ids, mask)
        tokens = emb.gathered(counts).sum()
        return LossOutput.of(total * emb.world_size / tokens.clamp(min=1), tokens=tokens)

    def _tokens(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if self._translate is None:
            return ids, mask
        encoder, decoder = self._translate
        real = [row[m.bool()].tolist() for row, m in zip(ids, mask, strict=True)]
        texts = encoder.batch_decode(real, skip_special_tokens=True)
        batch = decoder(texts, padding=True, truncation=True, return_tensors="pt")
        return batch["input_ids"].to(ids.device), batch["attention_mask"].to(ids.device)

    # -- saving: shared parameters belong to the encoder ---------------------------------------------------------------------
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The decoder's own weights: cross-attention and head, or everything if it is not tied."""
        state = super().state_dict(*args, **kwargs)
        for name in self._shared:
            state.pop(f"{kwargs.get('prefix', '')}decoder.{name}", None)
        return state

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        if self._shared:
            # Each stands for itself: what is loaded under the other name is not overwritten.
            own: Mapping[str, Tensor] = dict(self.decoder.named_parameters(remove_duplicate=False))
            for name in self._shared:
                state_dict.setdefault(f"{prefix}decoder.{name}", own[name].detach())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _tokenizers(encoder: Any, name_or_path: str) -> tuple[Any, Any] | None:
    """Both tokenizers if their vocabularies differ, else None."""
    from transformers import AutoTokenizer

    own, theirs = encoder.processor.tokenizer, AutoTokenizer.from_pretrained(name_or_path)
    if own.get_vocab() == theirs.get_vocab():
        return None
    if theirs.pad_token is None:
        theirs.pad_token = theirs.eos_token
    return own, theirs
