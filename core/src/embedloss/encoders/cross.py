"""The cross-encoder: a transformer that reads two texts at once and gives a score, or one logit a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from embedloss.encoders.base import BLOCK, Encoder, check_texts, plan_chunks, progress_bar
from embedloss.encoders.bi import model_inputs, recompute_layers, save_transformer, text_config
from embedloss.encoders.card import write_card
from embedloss.encoders.folder import write_json, write_settings
from embedloss.encoders.lora import HEAD_FILE, has_adapters
from embedloss.encoders.modules import ACTIVATIONS
from embedloss.encoders.text import UNLIMITED, TextProcessor, Tokens, pad_id
from embedloss.errors import EmbedlossError


class PairProcessor(TextProcessor):
    """Tokenises pairs of texts into one sequence each."""

    _joins: bool | None = None

    def tokenize_pairs(self, queries: Sequence[str], documents: Sequence[str], prompt: str = "") -> list[Any]:
        """One item a pair, cut to `max_length` tokens from the longer text's end; the prompt goes before the query.

        Each distinct text is tokenised once where the tokenizer can join tokens afterwards: a query has many documents, and
        with in-batch negatives a document has many queries.
        """
        if not queries:
            return []
        first, second = [prompt + query for query in queries], list(documents)
        found = self._join(first, second) if self._can_join() else self._call(first, second)
        return [Tokens(ids, types) for ids, types in found]

    def _join(self, first: list[str], second: list[str]) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """What `_call` gives, from texts that are tokenised once each."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        texts = list(dict.fromkeys([*first, *second]))
        parts = dict(zip(texts, backend.encode_batch(texts, add_special_tokens=False), strict=True))
        if self.max_length < UNLIMITED:
            backend.enable_truncation(self.max_length, direction=self.tokenizer.truncation_side)
        typed = "token_type_ids" in self.tokenizer.model_input_names
        made = []
        for a, b in zip(first, second, strict=True):
            joined = backend.post_process(parts[a], parts[b], True)
            types = np.array(joined.type_ids, dtype=np.int32) if typed and any(joined.type_ids) else None
            made.append((np.array(joined.ids or [pad_id(self.tokenizer)], dtype=np.int32), types))
        return made

    def _can_join(self) -> bool:
        """Whether `_join` equals `_call`, tried once on a short and on a long pair; a tokenizer in Python cannot."""
        if self._joins is None:
            self._joins = False
            if getattr(self.tokenizer, "backend_tokenizer", None) is not None:
                length = min(self.max_length, 2048)
                first, second = ["A b, c.", "Une  tête " * length], ["D'e f", "the other \u00e9 1 " * length]
                same = zip(self._call(first, second), self._join(first, second), strict=True)
                self._joins = all(
                    np.array_equal(a, b) and (s is None) == (t is None) and (s is None or t is None or np.array_equal(s, t))
                    for (a, s), (b, t) in same
                )
        return self._joins


class CrossEncoder(Encoder):
    """Logits of pairs of texts.

    Args:
        model: a transformer with a classification head.
        processor: its tokenizer, with the maximal length of a pair.
        settings: content of config_sentence_transformers.json.
        activation: name of the function of torch.nn that `predict` applies; None is Sigmoid for one label, else Identity.
    """

    kind = "cross-encoder"
    processor: PairProcessor

    def __init__(
        self,
        model: nn.Module,
        processor: PairProcessor,
        settings: Mapping[str, Any] | None = None,
        activation: str | None = None,
    ) -> None:
        super().__init__(processor, settings)
        self.model = model
        self.dimension = self.num_labels = int(model.config.num_labels)  # type: ignore[union-attr,arg-type]
        self.n_layers = int(text_config(model.config).num_hidden_layers)
        self.activation = activation or ("Sigmoid" if self.num_labels == 1 else "Identity")
        if self.activation not in ACTIVATIONS:
            raise EmbedlossError("E301", f"activation '{self.activation}' is not supported. Known: {', '.join(ACTIVATIONS)}.")

    def forward(self, features: dict[str, Tensor], layers: bool = False) -> Any:
        """Logits of one chunk, (pairs, num_labels).

        Args:
            features: input_ids and attention_mask, (pairs, length), as `processor.pad` makes them.
            layers: not possible here; E302.
        """
        if layers:
            raise EmbedlossError("E302", "a cross-encoder gives no embeddings of its layers.")
        return self.model(**model_inputs(self.model, features), return_dict=True).logits

    @torch.inference_mode()
    def predict(
        self,
        pairs: Sequence[Sequence[str]],
        *,
        prompt: str = "",
        chunk_tokens: int | None = None,
        activation: str | None = None,
        show_progress: bool | str = False,
    ) -> np.ndarray:
        """Scores of pairs, float32: (pairs,) for one label, else (pairs, num_labels); without dropout.

        Args:
            pairs: (query, document) each.
            prompt: put before every query.
            chunk_tokens: tokens of a chunk, padding included; the result does not depend on it.
            activation: instead of the encoder's own; "Identity" gives logits.
            show_progress: a progress bar on stderr; a text is its name.
        """
        function = getattr(nn, activation or self.activation)()
        queries, documents = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        check_texts(queries)
        check_texts(documents)
        result = np.zeros((len(pairs), self.num_labels), dtype=np.float32)
        training = self.training
        self.eval()
        bar = progress_bar(len(pairs), show_progress) if show_progress else None
        try:
            for begin in range(0, len(pairs), BLOCK):
                items = self.processor.tokenize_pairs(queries[begin : begin + BLOCK], documents[begin : begin + BLOCK], prompt)
                for chunk in plan_chunks([len(item) for item in items], chunk_tokens or self.usual_chunk):
                    features = {k: v.to(self.device) for k, v in self.processor.pad([items[i] for i in chunk]).items()}
                    result[begin + np.array(chunk)] = function(self(features).float()).cpu().numpy()
                    if bar is not None:
                        bar.update(len(chunk))
        finally:
            self.train(training)
            if bar is not None:
                bar.close()
        return result[:, 0] if self.num_labels == 1 else result

    def encode(self, texts: Sequence[str], **options: Any) -> np.ndarray:
        """E302: pairs have scores, single texts have no embedding."""
        raise EmbedlossError("E302", "a cross-encoder scores pairs: use .predict([(query, document), ...]).")

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Recompute each layer of the transformer in the backward pass."""
        recompute_layers(self.model, gradient_checkpointing_kwargs, **options)

    def save(self, folder: str | Path) -> None:
        """Write the encoder to a folder that `load_encoder` and sentence_transformers.CrossEncoder open."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        kind = getattr(nn, self.activation)
        path = f"{kind.__module__}.{kind.__qualname__}"
        config: Any = self.model.config
        config.sentence_transformers = {"activation_fn": path, "version": "4.0.0"}  # where version 4 looks for it
        save_transformer(self.model, self.processor, folder)
        if has_adapters(self.model):  # with a config.json, transformers would look for all weights here
            write_json(folder / HEAD_FILE, {"num_labels": self.num_labels})
        # Versions before 5.4 ignore modules.json and read the folder as one of transformers.
        module = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
        write_json(folder / "modules.json", [module])
        text = {"method": "forward", "method_output_name": "logits"}
        task = {
            "transformer_task": "sequence-classification",
            "modality_config": {"text": text},
            "module_output_name": "scores",
        }
        write_json(folder / "sentence_bert_config.json", task)
        write_settings(folder, {**self.settings, "activation_fn": path}, self.prompts, "CrossEncoder")
        if not (folder / "README.md").exists():
            write_card(folder, encoder=self)
