"""The bi-encoder: a transformer, pooling, and what comes after."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from embedloss.encoders.base import Encoder
from embedloss.encoders.card import write_card
from embedloss.encoders.folder import write_json, write_modules, write_settings
from embedloss.encoders.modules import Pooling
from embedloss.encoders.text import UNLIMITED, TextProcessor


class BiEncoder(Encoder):
    """One embedding a text from a transformer.

    Args:
        model: a transformer whose output has `last_hidden_state`.
        processor: its tokenizer, with the maximal length.
        after: pooling first, then dense and normalising modules.
        settings: content of config_sentence_transformers.json.
        lower_case: the tokenizer was told to lower-case; only kept to be saved.
    """

    kind = "bi-encoder"
    processor: TextProcessor

    def __init__(
        self,
        model: nn.Module,
        processor: TextProcessor,
        after: Sequence[nn.Module],
        settings: Mapping[str, Any] | None = None,
        lower_case: bool = False,
    ) -> None:
        super().__init__(processor, settings)
        self.model, self.after, self.lower_case = model, nn.ModuleList(after), lower_case
        self.dimension = next(int(m.dimension) for m in reversed(self.after) if hasattr(m, "dimension"))  # type: ignore[arg-type]
        self.n_layers = int(text_config(model.config).num_hidden_layers)
        # The transformer's own pooler is not used: without gradient it must not wait for one (DDP), nor decay.
        if isinstance(pooler := getattr(model, "pooler", None), nn.Module):
            pooler.requires_grad_(False)

    def forward(self, features: dict[str, Tensor], layers: bool = False) -> Any:
        """Embeddings of one chunk, (texts, dimension); with `layers` a list of them, embedding layer first, final last.

        Args:
            features: input_ids and attention_mask, (texts, length), padded on the right; more as `processor.pad` makes it.
            layers: every layer's embeddings, each through pooling and what comes after.
        """
        output = self.model(**model_inputs(self.model, features), return_dict=True, output_hidden_states=layers)
        if not layers:
            return self._finish(output.last_hidden_state, features)
        # The last entry of hidden_states misses the final norm in some models, last_hidden_state never does.
        hidden = [*output.hidden_states[: self.n_layers], output.last_hidden_state]
        return [self._finish(tokens, features) for tokens in hidden]

    def _finish(self, tokens: Tensor, features: dict[str, Tensor]) -> Tensor:
        pooling, *rest = self.after
        embeddings: Tensor = pooling(tokens, features["attention_mask"], features.get("prompt_length"))
        for module in rest:
            embeddings = module(embeddings)
        return embeddings

    @property
    def pooling(self) -> Pooling:
        """The pooling module."""
        module = self.after[0]
        assert isinstance(module, Pooling)
        return module

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Recompute each layer of the transformer in the backward pass."""
        recompute_layers(self.model, gradient_checkpointing_kwargs, **options)

    def save(self, folder: str | Path) -> None:
        """Write the encoder to a folder that `load_encoder` and sentence-transformers open."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_transformer(self.model, self.processor, folder)
        length = self.processor.max_length
        config = {"max_seq_length": length if length < UNLIMITED else None, "do_lower_case": self.lower_case}
        write_json(folder / "sentence_bert_config.json", config)
        write_modules(folder, "Transformer", "", self.after)
        write_settings(folder, self.settings, self.prompts, "SentenceTransformer")
        if not (folder / "README.md").exists():
            write_card(folder, encoder=self)


def save_transformer(model: Any, processor: TextProcessor, folder: Path) -> None:
    """Weights, config and tokenizer of a transformer; the maximal length goes into the tokenizer as well."""
    from embedloss.encoders.loading import quiet

    with quiet():
        model.save_pretrained(folder)
        if processor.max_length < UNLIMITED:
            processor.tokenizer.model_max_length = processor.max_length
        processor.tokenizer.save_pretrained(folder)


def model_inputs(model: nn.Module, features: dict[str, Tensor]) -> dict[str, Tensor]:
    """The features that a model takes: many tokenizers give token type ids to models that know none."""
    names = inspect.signature(model.forward).parameters
    # A wrapped model (an adapter, say) takes anything and passes it on.
    return {k: v for k, v in features.items() if k in names or ("input_ids" not in names and k != "prompt_length")}


def recompute_layers(model: Any, kwargs: dict[str, Any] | None = None, **options: Any) -> None:
    """Recompute each layer in the backward pass; newer versions of transformers have another name for it."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(kwargs, **options)


def text_config(config: Any) -> Any:
    """The part of a config that describes the text model."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config
