"""The data sets of a run as plain data: what `data:` in run.yaml and `--data NAME=PATH` mean. Imports no torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from embedloss.errors import EmbedlossError

if TYPE_CHECKING:
    from embedloss.training.config import RunConfig

RESERVED = ("mean",)  # evaluation averages are called so
_NAMED = re.compile(r"([A-Za-z_][\w-]*)=(?!=)(.+)", re.DOTALL)
_NAME = re.compile(r"[A-Za-z_][\w-]*")


@dataclass
class DataSet:
    """Settings of one data set; what is not given is the run's.

    Args:
        name: "" where the run has one data set without a name.
        path: file, folder or hub id.
        loss: expression.
        prompts: role -> text.
        weight: share of the steps, relative to the others.
        batch_size: rows a step on each process.
        sampler: how batches are drawn.
        map: role -> column.
        drop: columns to leave out.
        scale_labels: scale labels to the loss's range.
    """

    name: str = ""
    path: str = ""
    loss: str = ""
    prompts: dict[str, str] = field(default_factory=dict)
    weight: float | None = None
    batch_size: int | None = None
    sampler: str = "auto"
    map: dict[str, str] = field(default_factory=dict)
    drop: list[str] = field(default_factory=list)
    scale_labels: bool = False


def data_sets(config: RunConfig) -> list[DataSet]:
    """The data sets of a run with all their settings; one without a name where `data` is a path."""
    shared = {"loss": config.loss, "sampler": config.sampler, "scale_labels": config.scale_labels}
    if isinstance(config.data, str):
        more = {"map": config.map, "drop": config.drop, "prompts": config.prompts}
        return [DataSet(path=config.data, **shared, **more)]  # type: ignore[arg-type]
    made = []
    for name, own in config.data.items():
        merged = {**shared, "map": {}, "drop": [], **own}
        merged["map"] = {**config.map, **merged["map"]}
        merged["drop"] = list(dict.fromkeys([*config.drop, *merged["drop"]]))
        made.append(DataSet(name, **merged))
    return made


def named(text: str) -> tuple[str, str] | None:
    """("nli", "a.jsonl") for "nli=a.jsonl"; None for a path, also for one that has "=" in it."""
    match = _NAMED.fullmatch(text)
    return (match[1], match[2]) if match and not Path(text).exists() else None


def fold(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Every way to write several data sets, as `data: {name: {path: ..., ...}}`; one data set stays a path.

    `loss`, `weights`, `prompts`, `map` and `drop` may name a data set: {nli: mnrl}, "nli=mnrl", "nli.query" or
    {nli: {query: ...}}.

    Raises:
        EmbedlossError: E401 for a name that no data set has, a key that no data set takes, or a name that is given twice.
    """
    found = dict(values)
    for key in ("data", "eval_data"):
        if key in found and found[key] is not None:
            found[key] = _sources(found[key], key, where)
    sets = found.get("data")
    known = list(sets) if isinstance(sets, dict) else []
    given: dict[str, dict[str, Any]] = {name: dict(own) for name, own in sets.items()} if isinstance(sets, dict) else {}
    found = _named_values(found, known, given)
    for key in ("prompts", "map"):
        if found.get(key) is not None and known:
            found[key] = _dotted(found[key], key, known, given)
    if known and found.get("drop") is not None:
        kept = []
        for column in [found["drop"]] if isinstance(found["drop"], str) else found["drop"]:
            name, dot, rest = str(column).partition(".")
            if dot and name in known:
                given[name]["drop"] = [*given[name].get("drop", []), rest]
            else:
                kept.append(column)
        found["drop"] = kept
    for dotted in [key for key in found if str(key).startswith("data.")]:
        _, _, rest = str(dotted).partition(".")
        name, _, own_key = rest.partition(".")
        _check_name(name, known, f"'{dotted}'")
        given[name][_own_key(own_key, where, name)] = found.pop(dotted)
    if known:
        found["data"] = {name: _clean(own, name, where) for name, own in given.items()}
    return found


def _sources(value: Any, key: str, where: str) -> Any:
    """A path, or name -> settings (for `eval_data`: name -> path)."""
    entries: list[tuple[str, Any]] = []
    option = f"--{key.replace('_', '-')}"
    if isinstance(value, Mapping):
        entries = [(str(name), own) for name, own in value.items()]
    elif isinstance(value, (list, tuple)):
        for item in value:
            pair = named(item) if isinstance(item, str) else None
            if isinstance(item, Mapping):
                if "name" not in item:
                    raise EmbedlossError("E401", f"{where}: every entry of '{key}' needs a 'name'; got {dict(item)}.")
                entries.append((str(item["name"]), {k: v for k, v in item.items() if k != "name"}))
            elif pair:
                entries.append(pair)
            elif len(value) == 1:
                return str(item)
            else:
                raise EmbedlossError("E401", f"several data sets need names: {option} NAME={item}.")
    elif isinstance(value, str):
        pair = named(value)
        if pair is None:
            return value
        entries = [pair]
    else:
        return value
    made: dict[str, Any] = {}
    for name, own in entries:
        if not _NAME.fullmatch(name) or name in RESERVED:
            raise EmbedlossError(
                "E401", f"{where}: '{name}' cannot name a data set; use letters, digits, '-' and '_', and not 'mean'."
            )
        if name in made:
            raise EmbedlossError("E401", f"{where}: the data set '{name}' is given twice.")
        if key == "eval_data":
            own = own.get("path") if isinstance(own, Mapping) and set(own) == {"path"} else own
            if not isinstance(own, (str, Path)):
                raise EmbedlossError("E401", f"{where}: evaluation data is a path, such as {name}: dev.jsonl; got {own!r}.")
            made[name] = str(own)
            continue
        settings = {"path": own} if not isinstance(own, Mapping) else own
        made[name] = {_own_key(str(k), where, name): v for k, v in settings.items()}
    return made


def _own_key(key: str, where: str, name: str) -> str:
    known = [f.name for f in fields(DataSet) if f.name != "name"]
    key = key.replace("-", "_")
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise EmbedlossError("E401", f"{where}: data set '{name}' has the unknown key '{key}'.{hint} Keys: {', '.join(known)}.")
    return key


def _check_name(name: str, known: list[str], what: str) -> None:
    if name in known:
        return
    if not known:
        raise EmbedlossError("E401", f"{what} is for a data set '{name}', but the data has no names; type --data {name}=PATH.")
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise EmbedlossError("E401", f"{what} is for the unknown data set '{name}'.{hint} Data sets: {', '.join(known)}.")


def _named_values(found: dict[str, Any], known: list[str], given: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """`loss` and `weights` by data set."""
    for key, own_key, option in (("loss", "loss", "--loss"), ("weights", "weight", "--weight")):
        value = found.get(key)
        plain: list[Any] = []
        entries: list[tuple[str, Any]] = []
        if isinstance(value, Mapping):
            entries = [(str(name), own) for name, own in value.items()]
        else:
            for item in value if isinstance(value, (list, tuple)) else [] if value is None else [value]:
                match = _NAMED.fullmatch(str(item))
                if match:
                    entries.append((match[1], match[2]))
                else:
                    plain.append(item)
        if key == "weights":
            found.pop(key, None)
            if plain:
                raise EmbedlossError("E401", f"{option} {plain[0]}: type {option} NAME=NUMBER.")
        elif len(plain) > 1:
            raise EmbedlossError("E401", f"two losses without a data set: {plain[0]} and {plain[1]}. Type {option} NAME=EXPR.")
        elif key in found:
            found[key] = plain[0] if plain else ""
        for name, own in entries:
            _check_name(name, known, f"{option} {name}={own}")
            given[name][own_key] = own
    return found


def _dotted(value: Any, key: str, known: list[str], given: dict[str, dict[str, Any]]) -> Any:
    """`prompts` and `map`: what is for one data set goes there, the rest stays."""
    if not isinstance(value, Mapping):
        return value
    kept = {}
    option = {"prompts": "--prompt", "map": "--map"}[key]
    for raw, text in value.items():
        name, dot, role = str(raw).partition(".")
        if isinstance(text, Mapping):
            _check_name(str(raw), known, f"'{key}'")
            given[str(raw)][key] = {**(given[str(raw)].get(key) or {}), **text}
        elif dot:
            _check_name(name, known, f"{option} {raw}")
            given[name][key] = {**(given[name].get(key) or {}), role: text}
        else:
            kept[raw] = text
    return kept


def _clean(own: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """The settings of a data set in their types."""
    from embedloss.training.config import Sampler, coerce

    hints = {**get_type_hints(DataSet), "sampler": Sampler}
    clean = {key: coerce(value, hints[key], f"data.{name}.{key}", where) for key, value in own.items()}
    if not clean.get("path"):
        raise EmbedlossError("E401", f"{where}: data set '{name}' has no 'path'.")
    return clean
