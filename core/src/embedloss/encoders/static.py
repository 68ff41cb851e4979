"""The static encoder: the mean of word vectors. No attention, no padding, hundreds of times faster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from embedloss.encoders.base import Encoder
from embedloss.encoders.card import write_card
from embedloss.encoders.folder import write_modules, write_settings, write_weights
from embedloss.encoders.text import StaticProcessor
from embedloss.errors import EmbedlossError


class StaticEncoder(Encoder):
    """One embedding a text: the mean of its tokens' vectors; 0 for a text without tokens.

    Args:
        table: (vocabulary, dimension) one vector a token.
        processor: its tokenizer.
        after: dense and normalising modules.
        settings: content of config_sentence_transformers.json.
    """

    kind = "bi-encoder"
    n_layers = 0
    processor: StaticProcessor

    def __init__(
        self,
        table: Tensor,
        processor: StaticProcessor,
        after: Sequence[nn.Module] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(processor, settings)
        if processor.tokenizer.get_vocab_size() > len(table):
            raise EmbedlossError(
                "E301", f"the tokenizer has {processor.tokenizer.get_vocab_size()} tokens, the table {len(table)} vectors."
            )
        self.embedding = nn.EmbeddingBag.from_pretrained(table, freeze=False, mode="mean")
        self.after = nn.ModuleList(after)
        sizes = [int(m.dimension) for m in self.after if hasattr(m, "dimension")]  # type: ignore[arg-type]
        self.dimension = sizes[-1] if sizes else table.shape[1]

    def forward(self, features: dict[str, Tensor], layers: bool = False) -> Any:
        """Embeddings of one chunk, (texts, dimension); with `layers` a list of one.

        Args:
            features: input_ids (tokens,) of all texts, offsets (texts,) where each begins.
            layers: a list, as of other encoders.
        """
        embeddings: Tensor = self.embedding(features["input_ids"], features["offsets"])
        for module in self.after:
            embeddings = module(embeddings)
        return [embeddings] if layers else embeddings

    def save(self, folder: str | Path) -> None:
        """Write the encoder to a folder that `load_encoder` and sentence-transformers open."""
        folder = Path(folder)
        # A folder of its own for the table, because older versions open only a transformer in the root.
        own = folder / "0_StaticEmbedding"
        write_weights(own, {"embedding.weight": self.embedding.weight})
        self.processor.tokenizer.save(str(own / "tokenizer.json"))
        write_modules(folder, "StaticEmbedding", own.name, self.after)
        write_settings(folder, self.settings, self.prompts, "SentenceTransformer")
        if not (folder / "README.md").exists():
            write_card(folder, encoder=self)


def new_static_encoder(texts: Iterable[str], dimension: int = 256, vocab_size: int = 30000, seed: int = 0) -> StaticEncoder:
    """An untrained static encoder with a WordPiece vocabulary learnt from texts.

    Args:
        texts: what the vocabulary is learnt from.
        dimension: size of the embeddings.
        vocab_size: upper bound of the vocabulary, or the number of different characters where that is more.
        seed: of the vectors, drawn from N(0, 1 / dimension), so that they have length 1 on average.
    """
    tokenizer = train_wordpiece(texts, vocab_size)
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(tokenizer.get_vocab_size(), dimension, generator=generator) * dimension**-0.5
    return StaticEncoder(table, StaticProcessor(tokenizer))


def train_wordpiece(texts: Iterable[str], vocab_size: int) -> Any:
    """A WordPiece tokenizer learnt from texts; the same texts give the same vocabulary in every process."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    def empty(vocabulary: dict[str, int] | None) -> Any:
        model = models.WordPiece(vocab=vocabulary, unk_token="[UNK]") if vocabulary else models.WordPiece(unk_token="[UNK]")
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        return tokenizer

    texts = list(texts)
    draft = empty(None)
    characters = sorted({c for text in texts for c in draft.normalizer.normalize_str(text) if not c.isspace()})
    # The trainer numbers the inner characters in the order of a hash map and breaks ties between merges by number, so
    # two runs would differ. Naming them beforehand fixes the numbers; the final tokenizer does not know them as special.
    named = ["[PAD]", "[UNK]", *characters, *(f"##{c}" for c in characters)]
    trainer = trainers.WordPieceTrainer(vocab_size=max(vocab_size, len(named)), special_tokens=named, show_progress=False)
    draft.train_from_iterator(texts, trainer)
    return empty(draft.get_vocab())
