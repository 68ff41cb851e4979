"""LoRA adapters of peft in an encoder's transformer: added, loaded, merged (Hu et al. 2021, arXiv 2106.09685).

A folder with adapters holds them and the name of the model they belong to, not that model's weights. Both load_encoder and
sentence-transformers open it where peft is installed.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from embedloss.errors import EmbedlossError

ADAPTER_FILE = "adapter_config.json"
HEAD_FILE = "adapter_head.json"  # ours: how many logits a cross-encoder with adapters has
INSTALL = "pip install 'embedloss[lora]'"
# How architectures call the projections to queries and values, which get adapters unless others are named.
QUERY_VALUE = (
    ("query", "value"), ("q_proj", "v_proj"), ("q_lin", "v_lin"), ("q", "v"), ("query_proj", "value_proj"), ("Wqkv",),
    ("qkv_proj",), ("c_attn",),
)  # fmt: skip


@dataclass(frozen=True)
class LoraSettings:
    """What an adapter is made of.

    Args:
        r: rank.
        alpha: an adapter's output is multiplied by alpha / r; by default 2 r.
        dropout: of an adapter's input.
        target: names of the layers that get one; by default the projections to queries and values.
    """

    r: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    target: tuple[str, ...] = ()

    @classmethod
    def read(cls, values: Mapping[str, str]) -> LoraSettings:
        """From texts such as {"r": "16", "target": "query+value"}; E401 for what is none of the above."""
        known = ("r", "alpha", "dropout", "target")
        for key in values:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
                hint = f" Did you mean '{close[0]}'?" if close else ""
                raise EmbedlossError("E401", f"'lora' has no setting '{key}'.{hint} Type --lora r=16,alpha=32,dropout=0.05.")
        try:
            rank, dropout = int(values.get("r", 16)), float(values.get("dropout", 0))
            alpha = float(values["alpha"]) if "alpha" in values else None
        except ValueError as exception:
            raise EmbedlossError("E401", f"'lora' is not understood ({exception}). Type --lora r=16,alpha=32.") from exception
        if rank < 1 or not 0 <= dropout < 1 or (alpha is not None and not 0 < alpha < float("inf")):
            raise EmbedlossError("E401", "'lora' needs r of at least 1, alpha above 0, and dropout from 0 to below 1.")
        target = tuple(part.strip() for part in values.get("target", "").split("+") if part.strip())
        return cls(rank, alpha, dropout, target)


def need_peft() -> None:
    """E404 unless peft is installed."""
    if importlib.util.find_spec("peft") is None:
        raise EmbedlossError("E404", f"LoRA adapters need peft: {INSTALL}")


def has_adapters(model: Any) -> bool:
    """Whether a transformer holds adapters."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def add_adapters(encoder: Any, settings: LoraSettings, *, hub_id: str = "", seed: int = 0) -> str:
    """Put adapters into an encoder's transformer, in place; its other weights stay as they are.

    Args:
        encoder: a bi-encoder or cross-encoder; what comes after the transformer, or is its head, is trained as before.
        settings: rank and so on.
        hub_id: where the model came from, so that the adapters name it rather than a folder of this machine.
        seed: of the new weights.

    Returns:
        A sentence on what is trained.

    Raises:
        EmbedlossError: E401 for layers that the transformer does not have, or if it has adapters already.
    """
    need_peft()
    from peft import LoraConfig

    model = encoder.model
    if has_adapters(model):
        raise EmbedlossError("E401", "this model has adapters already: leave out --lora to go on training them.")
    linear = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    target = settings.target or next((names for names in QUERY_VALUE if set(names) <= linear), ())
    unknown = [name for name in target if name not in linear]
    if unknown or not target:
        close = difflib.get_close_matches(unknown[0], linear, n=1, cutoff=0.4) if unknown else []
        what = f"the transformer has no layer '{unknown[0]}'." if unknown else "it is not clear which layers get adapters."
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise EmbedlossError("E401", f"{what}{hint} Type --lora target=A+B with some of: {', '.join(sorted(linear))}.")
    head = _head(model) if encoder.kind == "cross-encoder" else []
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha if settings.alpha is not None else 2 * settings.r,
        lora_dropout=settings.dropout,
        target_modules=list(target),
        modules_to_save=head or None,
        task_type="SEQ_CLS" if head else "FEATURE_EXTRACTION",
    )
    model.name_or_path = _origin(str(model.name_or_path), hub_id)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.add_adapter(config)
    trained = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    total = sum(p.numel() for p in encoder.parameters())
    return f"rank {settings.r} on {', '.join(target)}: {trained:,} of {total:,} weights are trained ({trained / total:.2%})"


def load_adapters(model: Any, folder: Path) -> None:
    """Read the adapters of a folder into the transformer they belong to, ready for training; E301 if they do not fit."""
    need_peft()
    from peft.tuners.tuners_utils import BaseTunerLayer

    from embedloss.encoders.folder import one_line
    from embedloss.encoders.loading import quiet

    mode, conversions = model.training, getattr(model, "_weight_conversions", None)
    try:
        with quiet():
            model.load_adapter(str(folder), is_trainable=True)
    except Exception as exception:  # peft and transformers raise many kinds
        raise EmbedlossError("E301", f"the adapters in {folder} cannot be loaded: {one_line(exception)}") from exception
    if not any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise EmbedlossError("E301", f"the adapters in {folder} fit no layer of the model they name.")
    model._weight_conversions = conversions  # those of the adapters would rename the weights of a merged model
    model.train(mode)


def merge_adapters(encoder: Any) -> None:
    """Add the adapters to the weights, in place: the same embeddings, and a model that opens without peft."""
    model = encoder.model
    if not has_adapters(model):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            plain = module.get_base_layer()
        elif isinstance(module, ModulesToSaveWrapper):
            plain = module.modules_to_save["default"]
        else:
            continue
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, plain)
    del model.peft_config
    model._hf_peft_config_loaded = False
    model.requires_grad_(True)


def _head(model: Any) -> list[str]:
    """The parts of a cross-encoder that are trained and saved whole: its head, and the pooler, which is new with a new head."""
    body = getattr(model, model.base_model_prefix, None)
    names = [
        name for name, module in model.named_children() if module is not body and next(module.parameters(), None) is not None
    ]
    return names + (["pooler"] if isinstance(getattr(body, "pooler", None), nn.Module) else [])


def _origin(place: str, hub_id: str) -> str:
    """The hub id if the whole repository is the model, else the absolute folder."""
    if hub_id and not Path(hub_id).expanduser().is_dir() and re.search(r"models--[^/\\]+[/\\]snapshots[/\\]\w+$", place):
        return hub_id
    return str(Path(place).resolve()) if Path(place).is_dir() else place
