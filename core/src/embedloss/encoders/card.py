"""The model card, README.md of a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_USE = """## Use

```python
from embedloss import load_encoder

encoder = load_encoder("{name}")
embeddings = encoder.encode(["a text", "another text"])
```

The folder also opens with `sentence_transformers.SentenceTransformer("{name}")`.
"""


def write_card(
    folder: str | Path,
    *,
    encoder: Any = None,
    loss: str | None = None,
    citation: str | None = None,
    base_model: str | None = None,
    data: str | None = None,
    metrics: Mapping[str, float] | None = None,
    language: str | None = None,
    license: str | None = None,
    tags: list[str] | None = None,
    **facts: Any,
) -> Path:
    """Write README.md with the metadata that the hub reads.

    Args:
        folder: the model folder.
        encoder: for dimension and maximal length.
        loss: expression of the loss.
        citation: papers of the loss.
        base_model: what was fine-tuned; named in the metadata only if it is a hub id.
        data: what it was trained on.
        metrics: name -> value.
        language: code such as "en".
        license: identifier such as "apache-2.0".
        tags: further tags.
        facts: further lines of the table, by name.
    """
    from huggingface_hub import ModelCard, ModelCardData

    folder = Path(folder)
    cross = getattr(encoder, "kind", "") == "cross-encoder"
    metadata = ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="text-ranking" if cross else "sentence-similarity",
        tags=["sentence-transformers", "cross-encoder" if cross else "feature-extraction", "embedloss", *(tags or [])],
        base_model=base_model if base_model and not Path(base_model).exists() and base_model.count("/") <= 1 else None,
        language=language,
        license=license,
        metrics=sorted(metrics) if metrics else None,
    )
    table: dict[str, Any] = {
        "Base model": base_model and Path(base_model).name if base_model and Path(base_model).exists() else base_model
    }
    if encoder is not None:
        longest = encoder.processor.max_length
        table |= {"Dimension": encoder.dimension, "Maximal length": longest if longest < 10**6 else None}
    table |= {"Loss": f"`{loss}`" if loss else None, "Training data": data}
    table |= {name.replace("_", " ").capitalize(): value for name, value in facts.items()}
    parts = [f"---\n{metadata.to_yaml()}\n---\n\n# {folder.resolve().name}\n"]
    parts.append(_rows("Fact", {k: v for k, v in table.items() if v is not None}))
    if metrics:
        parts.append("## Evaluation\n\n" + _rows("Metric", {k: np.format_float_positional(v, 4) for k, v in metrics.items()}))
    parts.append(_USE.format(name=folder.resolve().name))
    if citation:
        parts.append(f"## Citation\n\n{citation}\n")
    card = ModelCard("\n".join(part for part in parts if part))
    card.save(folder / "README.md")
    return folder / "README.md"


def _rows(title: str, values: Mapping[str, Any]) -> str:
    if not values:
        return ""
    lines = [f"| {name} | {str(value).replace('|', '&#124;')} |" for name, value in values.items()]
    return "\n".join([f"| {title} | Value |", "| --- | --- |", *lines, ""])
