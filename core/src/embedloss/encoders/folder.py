"""Files of a model folder: reading them without tracebacks, writing them so that every version reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from embedloss.encoders.modules import AFTER
from embedloss.errors import EmbedlossError

SETTINGS = "config_sentence_transformers.json"
# The names that sentence-transformers used up to 5.3 and still accepts.
TYPE = "sentence_transformers.models."


def read_json(file: Path, default: Any = None) -> Any:
    """The content of a JSON file, `default` where there is none; E301 where it is damaged."""
    if not file.is_file():
        return default
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exception:
        raise EmbedlossError("E301", f"{file} is damaged: {exception}.") from exception


def read_object(file: Path) -> dict[str, Any]:
    """Like `read_json` for a file that holds an object; empty where there is no file."""
    content = read_json(file, {})
    if not isinstance(content, dict):
        raise EmbedlossError("E301", f"{file} is damaged: it should hold an object, not {type(content).__name__}.")
    return content


def write_json(file: Path, content: Any) -> None:
    """Write JSON, indented, as UTF-8."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Tensors of model.safetensors, else of pytorch_model.bin (never unpickling code); E301 where there are none."""
    try:
        if (folder / "model.safetensors").is_file():
            return dict(load_file(folder / "model.safetensors"))
        if (folder / "pytorch_model.bin").is_file():
            return dict(torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True))
    except Exception as exception:  # both readers raise many kinds for a damaged file
        raise EmbedlossError("E301", f"the weights in {folder} are damaged: {one_line(exception)}") from exception
    raise EmbedlossError("E301", f"{folder} has no weights (model.safetensors).")


def write_weights(folder: Path, weights: dict[str, Tensor]) -> None:
    """Write model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().cpu().contiguous() for k, v in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def one_line(exception: BaseException) -> str:
    """The first line of an exception's message, or its kind."""
    text = str(exception).strip()
    return text.splitlines()[0] if text else type(exception).__name__


def read_after(entry: dict[str, Any], folder: Path) -> nn.Module:
    """The module of one entry of modules.json that is not the first; E301 if it is of another kind or damaged."""
    name = module_name(entry)
    if name not in AFTER:
        known = ", ".join(("Transformer", "StaticEmbedding", *AFTER))
        raise EmbedlossError("E301", f"module '{entry.get('type')}' is not supported here. Supported: {known}.")
    place = folder / str(entry.get("path", ""))
    config = read_object(place / "config.json")
    try:
        module: nn.Module = AFTER[name].from_config(config)
        if next(module.parameters(), None) is not None:
            module.load_state_dict(read_weights(place))
    except (KeyError, TypeError, ValueError, RuntimeError) as exception:
        raise EmbedlossError(
            "E301", f"the module in {place} is damaged: {type(exception).__name__}: {one_line(exception)}"
        ) from exception
    return module


def module_name(entry: dict[str, Any]) -> str:
    """The class name of a module of sentence-transformers, old path or new; the whole path of any other module."""
    kind = str(entry.get("type", ""))
    return kind.rpartition(".")[2] if kind.startswith("sentence_transformers.") else kind


def read_modules(folder: Path) -> list[dict[str, Any]] | None:
    """The entries of modules.json in order, None where there is no such file."""
    entries = read_json(folder / "modules.json")
    if entries is None:
        return None
    if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) and "type" in e for e in entries):
        raise EmbedlossError("E301", f"{folder / 'modules.json'} is damaged: it should list modules with a 'type' each.")
    for entry in entries:
        check_inside(str(entry.get("path", "")), folder / "modules.json")
        if not isinstance(entry.get("idx", 0), int):
            raise EmbedlossError("E301", f"{folder / 'modules.json'} is damaged: 'idx' should be a number.")
    return sorted(entries, key=lambda e: int(e.get("idx", 0)))


def check_inside(name: str, file: Path) -> None:
    """E301 for a path in a model's file that leads out of the model's folder: absolute, or through '..'."""
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or name.startswith(("/", "\\", "~")) or ":" in parts[0]:
        raise EmbedlossError("E301", f"{file} names '{name}', which is outside of the model's folder.")


def write_modules(folder: Path, first: str, first_path: str, after: nn.ModuleList) -> None:
    """Write modules.json and everything but the first module."""
    entries = [{"idx": 0, "name": "0", "path": first_path, "type": TYPE + first}]
    for number, module in enumerate(after, start=1):
        suffix, config = module.suffix, module.config()  # type: ignore[union-attr,operator]
        path = f"{number}_{suffix}"
        entries.append({"idx": number, "name": str(number), "path": path, "type": f"{TYPE}{suffix}"})
        write_json(folder / path / "config.json", config)
        if next(module.parameters(), None) is not None:
            write_weights(folder / path, module.state_dict())
    write_json(folder / "modules.json", entries)


def write_settings(folder: Path, settings: dict[str, Any], prompts: dict[str, str], model_type: str) -> None:
    """Write config_sentence_transformers.json: what was read, the prompts of now, and the versions that wrote it."""
    import transformers

    import embedloss

    versions = {"embedloss": embedloss.__version__, "transformers": transformers.__version__, "pytorch": torch.__version__}
    defaults = {"default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(
        folder / SETTINGS, {**defaults, **settings, "__version__": versions, "model_type": model_type, "prompts": prompts}
    )
