"""The model card, README.md of a model folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_USE = """## Use

With embedloss:

```python
from embedloss import load_encoder

encoder = load_encoder("{name}")
{ours}
```

With sentence-transformers{peft}:

```python
from sentence_transformers import {their_class}

model = {their_class}("{name}")
{theirs}
```
"""
_TEXTS = '(["a text", "another text"])'
_PAIRS = '([("a query", "a document"), ("a query", "another document")])'


def write_card(
    folder: str | Path,
    *,
    encoder: Any = None,
    loss: str | None = None,
    citation: str | None = None,
    base_model: str | None = None,
    data: str | None = None,
    metrics: Mapping[str, float] | None = None,
    before: Mapping[str, float] | None = None,
    settings: Mapping[str, Any] | None = None,
    picture: str | None = None,
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
        before: the same before training.
        settings: of the training, by name.
        picture: file in the folder that shows the training.
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
    parts.append(_rows(("Fact", "Value"), {k: [v] for k, v in table.items() if v is not None}))
    name = folder.resolve().name
    if metrics:
        rows = {k: [*([_round(before[k]) if k in before else ""] if before else []), _round(v)] for k, v in metrics.items()}
        parts.append("## Evaluation\n\n" + _rows(("Metric", *(("Before", "After") if before else ("Value",))), rows))
    parts.append(
        _USE.format(
            name=name,
            ours=f"scores = encoder.predict{_PAIRS}" if cross else f"embeddings = encoder.encode{_TEXTS}",
            theirs=f"scores = model.predict{_PAIRS}" if cross else f"embeddings = model.encode{_TEXTS}",
            their_class="CrossEncoder" if cross else "SentenceTransformer",
            peft=", and peft (the folder holds adapters; their base model is fetched)"
            if (folder / "adapter_config.json").is_file()
            else "",
        )
    )
    if settings or picture:
        shown = f"![Loss, learning rate and evaluation over the steps]({picture})\n" if picture else ""
        told = _rows(("Setting", "Value"), {k.replace("_", " "): [v] for k, v in (settings or {}).items()})
        parts.append("## Training\n\n" + "\n".join(part for part in (shown, told) if part))
        if (folder / "run.yaml").is_file():
            parts.append("`run.yaml` holds every setting, `manifest.json` the versions and fingerprints of the data.\n")
    if citation:
        parts.append(f"## Citation\n\n{citation}\n")
    card = ModelCard("\n".join(part for part in parts if part))
    card.save(folder / "README.md")
    return folder / "README.md"


def _round(value: float) -> str:
    return np.format_float_positional(value, 4)


def _rows(titles: Sequence[str], values: Mapping[str, Sequence[Any]]) -> str:
    if not values:
        return ""
    lines = ["| " + " | ".join(str(v).replace("|", "&#124;") for v in (name, *each)) + " |" for name, each in values.items()]
    return "\n".join(["| " + " | ".join(titles) + " |", "| --- " * len(titles) + "|", *lines, ""])
