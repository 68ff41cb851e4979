"""`load_encoder`: from a folder or a hub id to an encoder, or to an E301 that says what to type."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from embedloss.encoders.base import Encoder
from embedloss.encoders.bi import BiEncoder, text_config
from embedloss.encoders.cross import CrossEncoder, PairProcessor
from embedloss.encoders.folder import (
    SETTINGS,
    check_inside,
    module_name,
    one_line,
    read_after,
    read_modules,
    read_object,
    read_weights,
)
from embedloss.encoders.lora import ADAPTER_FILE, HEAD_FILE, load_adapters, need_peft
from embedloss.encoders.modules import Normalize, Pooling
from embedloss.encoders.static import StaticEncoder
from embedloss.encoders.text import UNLIMITED, StaticProcessor, TextProcessor, pad_id
from embedloss.errors import EmbedlossError

_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "*.jinja"]
_IGNORED = ["onnx/*", "openvino/*", "*.onnx", "*.h5", "*.msgpack"]
_TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}


def load_encoder(
    folder_or_hub_id: str | Path,
    kind: str | None = None,
    *,
    device: str | torch.device | None = None,
    max_length: int | None = None,
    pooling: str | list[str] | None = None,
    normalize: bool | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    num_labels: int | None = None,
    seed: int = 0,
) -> Encoder:
    """Load an encoder.

    Args:
        folder_or_hub_id: a folder in the layout of sentence-transformers or of transformers, or the id of one on the hub.
        kind: "bi-encoder" or "cross-encoder"; None takes what the folder says.
        device: where the weights go; None leaves them on the CPU.
        max_length: maximal number of tokens of a text; None takes what the folder says.
        pooling: "mean", "cls", "cls+mean", ..., instead of what the folder says; "mean" where it says nothing.
        normalize: scale every embedding to length 1, or not; None takes what the folder says. Saved with the model.
        trust_remote_code: run code that the model brings along.
        revision: branch, tag or commit on the hub.
        dtype: of the weights; None is float32, in which training is safe, "auto" what was saved.
        num_labels: of a cross-encoder; None takes what the folder says, 1 where it says nothing.
        seed: of the head of a cross-encoder made from a model that has none.

    Raises:
        EmbedlossError: E301, the folder or id is missing, damaged or of a kind that is not supported.
    """
    if kind not in (None, "bi-encoder", "cross-encoder"):
        raise EmbedlossError("E301", f"kind must be 'bi-encoder' or 'cross-encoder', got {kind!r}.")
    folder = find_folder(folder_or_hub_id, revision, trust_remote_code)
    entries = read_modules(folder)
    settings = read_object(folder / SETTINGS)
    options = {"trust_remote_code": trust_remote_code, "dtype": as_dtype(dtype)}
    saved = saved_kind(folder, entries, settings)
    if kind == "bi-encoder" and saved == "cross-encoder":
        raise EmbedlossError(
            "E301", f"{folder} holds a cross-encoder; it gives no embeddings and cannot be loaded as a bi-encoder."
        )
    encoder: Encoder
    if entries is not None and module_name(entries[0]) not in ("Transformer", "StaticEmbedding"):
        raise EmbedlossError(
            "E301", f"module '{entries[0]['type']}' is not supported. Supported: Transformer, StaticEmbedding."
        )
    if entries is not None and module_name(entries[0]) == "StaticEmbedding":
        if kind == "cross-encoder":
            raise EmbedlossError("E301", f"{folder} holds word vectors; a cross-encoder needs a transformer.")
        encoder = load_static_encoder(folder, entries, settings, max_length, normalize)
    elif (kind or saved) == "cross-encoder":
        if normalize is not None:
            raise EmbedlossError("E301", "a cross-encoder gives scores, not embeddings to normalize; leave out normalize.")
        head = {"num_labels": num_labels, "seed": seed, "fresh": saved != "cross-encoder"}
        encoder = load_cross_encoder(folder, entries, settings, max_length, options, head)
    else:
        encoder = load_bi_encoder(folder, entries, settings, max_length, pooling, normalize, options)
    return encoder.to(device) if device is not None else encoder


def kind_of(folder_or_hub_id: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> str | None:
    """What a saved model is, from its settings alone: "bi-encoder", "cross-encoder", or None for a transformer that is neither
    yet (no modules.json and no ranking head). Errors as in `load_encoder`.
    """
    folder = find_folder(folder_or_hub_id, revision, trust_remote_code)
    entries, settings = read_modules(folder), read_object(folder / SETTINGS)
    kind = saved_kind(folder, entries, settings)
    return kind if kind == "cross-encoder" or entries is not None or settings.get("model_type") else None


def saved_kind(folder: Path, entries: list[dict[str, Any]] | None, settings: dict[str, Any]) -> str:
    """The kind as which a folder is loaded unless another is asked for."""
    if settings.get("model_type") in ("SentenceTransformer", "CrossEncoder"):
        return "cross-encoder" if settings["model_type"] == "CrossEncoder" else "bi-encoder"
    architectures = read_object(folder / "config.json").get("architectures") or [""]
    return "cross-encoder" if entries is None and str(architectures[0]).endswith("ForSequenceClassification") else "bi-encoder"


def load_cross_encoder(
    folder: Path,
    entries: list[dict[str, Any]] | None,
    settings: dict[str, Any],
    max_length: int | None,
    options: dict[str, Any],
    head: dict[str, Any],
) -> CrossEncoder:
    """A transformer with a classification head, which is new and seeded where there is none."""
    place = folder / str(entries[0].get("path", "")) if entries else folder
    config = read_object(place / "sentence_bert_config.json")
    if not head["fresh"]:
        if entries is not None and len(entries) > 1:
            raise EmbedlossError(
                "E301", f"module '{entries[1]['type']}' of a cross-encoder is not supported. Supported: Transformer."
            )
        if config.get("transformer_task", "sequence-classification") != "sequence-classification":
            raise EmbedlossError("E301", f"a cross-encoder for '{config['transformer_task']}' is not supported.")
    labels = head["num_labels"]
    if labels is None and head["fresh"]:
        labels = 1
    more = {} if labels is None else {"num_labels": labels, "ignore_mismatched_sizes": True}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(head["seed"])
        model = load_transformer(place, options, "AutoModelForSequenceClassification", **more)
    tokenizer = load_tokenizer(place, options)
    if getattr(model.config, "pad_token_id", None) is None:  # decoders look for the last token that is no padding
        model.config.pad_token_id = pad_id(tokenizer)
    about = getattr(model.config, "sentence_transformers", None) or {}
    old = getattr(model.config, "sbert_ce_default_activation_function", None)
    path = None if head["fresh"] else settings.get("activation_fn") or about.get("activation_fn") or old
    if path and not str(path).startswith("torch.nn."):
        raise EmbedlossError("E301", f"activation '{path}' is not supported; only those of torch.nn.")
    length = longest(model, tokenizer, config.get("max_seq_length"), max_length)
    activation = str(path).rpartition(".")[2] if path else None
    return CrossEncoder(model, PairProcessor(tokenizer, length), {} if head["fresh"] else settings, activation)


def load_bi_encoder(
    folder: Path,
    entries: list[dict[str, Any]] | None,
    settings: dict[str, Any],
    max_length: int | None,
    pooling: Any,
    normalize: bool | None,
    options: dict[str, Any],
) -> BiEncoder:
    """A transformer with what comes after it."""
    place = folder / str(entries[0].get("path", "")) if entries else folder
    config = read_object(place / "sentence_bert_config.json")
    check_text_only(config, place)
    after = [read_after(entry, folder) for entry in (entries or [])[1:]]
    if after and not isinstance(after[0], Pooling):
        raise EmbedlossError("E301", f"{folder / 'modules.json'} names no Pooling right after the Transformer.")
    model = load_transformer(place, options)
    tokenizer = load_tokenizer(place, options)
    size = int(text_config(model.config).hidden_size)
    if after and pooling is not None:
        after[0] = Pooling(pooling, size, after[0].include_prompt)  # type: ignore[arg-type]
    if not after:
        after = [Pooling(pooling or "mean", size)]
    check_sizes(after, size, folder)
    after = with_normalize(after, normalize)
    lower_case = bool(config.get("do_lower_case", False))
    if lower_case:
        lower(tokenizer)
    length = longest(model, tokenizer, config.get("max_seq_length"), max_length)
    processor = TextProcessor(tokenizer, length, marks_prompt=not after[0].include_prompt)
    return BiEncoder(model, processor, after, settings, lower_case)


def with_normalize(after: list[nn.Module], normalize: bool | None) -> list[nn.Module]:
    """The modules without their normalising ones, and with one at the end if `normalize`; as they are if it is None."""
    if normalize is None:
        return after
    kept = [module for module in after if not isinstance(module, Normalize)]
    return [*kept, Normalize()] if normalize else kept


def load_static_encoder(
    folder: Path, entries: list[dict[str, Any]], settings: dict[str, Any], max_length: int | None, normalize: bool | None
) -> StaticEncoder:
    """A table of vectors with what comes after it."""
    from tokenizers import Tokenizer

    place = folder / str(entries[0].get("path", ""))
    try:
        tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
    except Exception as exception:  # the library raises plain exceptions
        raise EmbedlossError("E301", f"{place / 'tokenizer.json'} cannot be read: {one_line(exception)}") from exception
    weights = read_weights(place)
    table = weights.get("embedding.weight", weights.get("embeddings"))
    if table is None or table.ndim != 2:
        raise EmbedlossError("E301", f"the weights in {place} hold no table 'embedding.weight'.")
    # Tables of model2vec may share vectors between tokens and weigh the tokens.
    if "embedding.weight" not in weights and "mapping" in weights:
        table = table[weights["mapping"].long()]
    table = table.float()
    if "embedding.weight" not in weights and "weights" in weights:
        table = table * weights["weights"].float()[:, None]
    after = [read_after(entry, folder) for entry in entries[1:]]
    if any(isinstance(module, Pooling) for module in after):
        raise EmbedlossError(
            "E301", f"{folder / 'modules.json'} names a Pooling after a StaticEmbedding, which has nothing to pool."
        )
    check_sizes(after, table.shape[1], folder)
    after = with_normalize(after, normalize)
    return StaticEncoder(table.contiguous(), StaticProcessor(tokenizer, max_length), after, settings)


def find_folder(name: str | Path, revision: str | None, with_code: bool) -> Path:
    """The folder itself, or the folder into which the hub's files were downloaded; E301 otherwise."""
    text = str(name)
    path = Path(text).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise EmbedlossError("E301", f"'{text}' is a file; a model is a folder.")
    local = isinstance(name, Path) or text.startswith((".", "~", "/", "\\")) or text.count("/") > 1 or "\\" in text
    if local or not re.fullmatch(r"[\w][\w.-]*(/[\w][\w.-]*)?", text) or text.endswith((".git", ".ipynb")):
        raise EmbedlossError(
            "E301", f"there is no folder '{text}'. Type a folder that exists or a hub id such as 'owner/name'."
        )
    from huggingface_hub import snapshot_download

    files = [*_FILES, "*.py"] if with_code else _FILES
    try:
        folder = Path(snapshot_download(text, revision=revision, allow_patterns=files, ignore_patterns=_IGNORED))
        if not any(folder.glob("**/*.safetensors")):
            folder = Path(
                snapshot_download(text, revision=revision, allow_patterns=[*files, "*.bin"], ignore_patterns=_IGNORED)
            )
    except Exception as exception:  # the hub client raises a dozen kinds: not found, gated, offline, ...
        raise EmbedlossError(
            "E301",
            f"there is no folder '{text}', and the hub did not give a model of that id "
            f"({type(exception).__name__}: {one_line(exception)}). Check the name, or type a folder.",
        ) from exception
    return folder


@contextmanager
def quiet() -> Iterator[None]:
    """Transformers without progress bars and reports."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load_transformer(folder: Path, options: dict[str, Any], auto: str = "AutoModel", **more: Any) -> Any:
    """The transformer of a folder; E301 if anything but its unused pooler is missing."""
    import transformers

    if (folder / ADAPTER_FILE).is_file():
        return load_adapted(folder, options, auto, **more)
    if not (folder / "config.json").is_file():
        raise EmbedlossError("E301", f"{folder} holds no model: there is neither modules.json nor config.json.")
    for index in folder.glob("*.index.json"):  # of weights in several files
        for name in read_object(index).get("weight_map", {}).values():
            check_inside(str(name), index)
    kind = str(read_object(folder / "config.json").get("model_type", ""))
    if auto == "AutoModel" and "t5" in kind:  # half of an encoder-decoder model
        auto = "AutoModelForTextEncoding"
    try:
        with quiet():
            model, info = getattr(transformers, auto).from_pretrained(folder, output_loading_info=True, **options, **more)
    except Exception as exception:  # transformers raises OSError, ValueError, RuntimeError, SafetensorError, ...
        raise EmbedlossError("E301", f"the transformer in {folder} cannot be loaded: {one_line(exception)}") from exception
    body = model.base_model_prefix + "."
    missing = sorted(info["missing_keys"])
    if more:  # a new head, and with it the pooler that BERT's head sits on
        missing = [key for key in missing if key.startswith(body) and not key.startswith(f"{body}pooler.")]
    elif any(key.startswith("pooler.") for key in missing):
        model.pooler = None  # not in the file and not used; random weights would only be saved again
        missing = [key for key in missing if not key.startswith("pooler.")]
    if missing:
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise EmbedlossError("E301", f"the weights in {folder} miss {len(missing)} tensors: {some}.")
    return model


def load_adapted(folder: Path, options: dict[str, Any], auto: str, **more: Any) -> Any:
    """The transformer that the adapters of a folder were trained on, with these adapters in it."""
    need_peft()
    name = read_object(folder / ADAPTER_FILE).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise EmbedlossError("E301", f"{folder / ADAPTER_FILE} does not name the model it belongs to.")
    try:
        base = find_folder(name, None, options["trust_remote_code"])
    except EmbedlossError as exception:
        raise EmbedlossError(
            "E301", f"the adapters in {folder} belong to the model '{name}', which cannot be found: {exception.message}"
        ) from exception
    labels = read_object(folder / HEAD_FILE).get("num_labels")
    if auto == "AutoModelForSequenceClassification" and isinstance(labels, int):
        more = {"num_labels": labels, "ignore_mismatched_sizes": True, **more}
    model = load_transformer(base, options, auto, **more)
    load_adapters(model, folder)
    return model


def load_tokenizer(folder: Path, options: dict[str, Any]) -> Any:
    """The tokenizer of a folder."""
    from transformers import AutoTokenizer

    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=options["trust_remote_code"])
    except Exception as exception:  # like models, of many kinds
        raise EmbedlossError("E301", f"the tokenizer in {folder} cannot be loaded: {one_line(exception)}") from exception


def longest(model: Any, tokenizer: Any, saved: Any, wanted: int | None) -> int:
    """Maximal number of tokens: what is wanted, else saved, else the tokenizer's, and never more than there are positions."""
    positions = usable_positions(model)
    if wanted is not None and not 0 < wanted <= positions:
        raise EmbedlossError("E301", f"max_length is {wanted}, but the model has {positions} positions.")
    known = wanted or saved or tokenizer.model_max_length or UNLIMITED
    return int(min(known, positions, UNLIMITED))


def usable_positions(model: nn.Module) -> int:
    """How many tokens the model's positions allow; models in RoBERTa's style lose the positions up to the padding index."""
    limit = getattr(text_config(model.config), "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return UNLIMITED
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return min(limit, module.num_embeddings) - module.padding_idx - 1
    return limit


def lower(tokenizer: Any) -> None:
    """Make a tokenizer lower-case its input, as 'do_lower_case' of sentence_bert_config.json asks."""
    from tokenizers import normalizers

    backend = tokenizer.backend_tokenizer
    if '"Lowercase"' not in str(backend.normalizer) and '"lowercase":true' not in backend.to_str().replace(" ", ""):
        steps = [normalizers.Lowercase()] + ([backend.normalizer] if backend.normalizer is not None else [])
        backend.normalizer = normalizers.Sequence(steps)


def check_text_only(config: dict[str, Any], place: Path) -> None:
    """E301 for a Transformer module that is no plain text encoder."""
    modalities = config.get("modality_config") or {"text": _TEXT}
    if modalities.get("text") != _TEXT or config.get("query_expansion"):
        raise EmbedlossError("E301", f"the Transformer in {place} is no plain text encoder ({', '.join(modalities)}).")


def check_sizes(after: list[nn.Module], size: int, folder: Path) -> None:
    """E301 unless each module takes what the one before gives."""
    for module in after:
        takes = (
            module.token_dimension
            if isinstance(module, Pooling)
            else getattr(getattr(module, "linear", None), "in_features", size)
        )
        if takes != size:
            raise EmbedlossError(
                "E301", f"the modules in {folder} do not fit: {type(module).__name__} takes {takes} numbers, gets {size}."
            )
        size = int(getattr(module, "dimension", size))


def as_dtype(dtype: str | torch.dtype | None) -> Any:
    """A dtype of torch from its name; float32 for None; "auto" as it is."""
    if isinstance(dtype, str) and dtype != "auto":
        found = getattr(torch, dtype.removeprefix("torch."), None)
        if not isinstance(found, torch.dtype):
            raise EmbedlossError("E301", f"unknown dtype '{dtype}'; such as float32, bfloat16, float16 or auto.")
        return found
    return torch.float32 if dtype is None else dtype
