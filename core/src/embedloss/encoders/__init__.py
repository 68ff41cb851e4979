"""Encoders: models that turn texts into embeddings, and how a batch is cut into chunks.

Everything here reads and writes the folder layout of sentence-transformers.
"""

from embedloss.encoders.base import Encoder, encode_chunks, encode_parts, plan_chunks, training_chunk
from embedloss.encoders.bi import BiEncoder
from embedloss.encoders.card import write_card
from embedloss.encoders.cross import CrossEncoder, PairProcessor
from embedloss.encoders.loading import kind_of, load_encoder
from embedloss.encoders.static import StaticEncoder, new_static_encoder
from embedloss.encoders.text import StaticProcessor, TextProcessor, Tokens

__all__ = [
    "BiEncoder",
    "CrossEncoder",
    "Encoder",
    "PairProcessor",
    "StaticEncoder",
    "StaticProcessor",
    "TextProcessor",
    "Tokens",
    "encode_chunks",
    "encode_parts",
    "kind_of",
    "load_encoder",
    "new_static_encoder",
    "plan_chunks",
    "training_chunk",
    "write_card",
]
