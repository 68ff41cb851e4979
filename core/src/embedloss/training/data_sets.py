"""Read, bind and check the data sets of a run before any model is loaded. Imports no torch by itself."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from embedloss.errors import EmbedlossError, naming
from embedloss.training.data_config import DataSet, data_sets

if TYPE_CHECKING:
    from embedloss.check import Binding, Report
    from embedloss.spec import LossSpec
    from embedloss.training.config import RunConfig


@dataclass
class Source:
    """One data set of a run, checked.

    Args:
        settings: as they were typed.
        spec: of its loss.
        data: the bound rows.
        binding: which columns they are.
        num_classes: number of classes, where the label is one.
        label_dimension: size of the teacher's vectors, where the label is one.
        notes: what is worth knowing about the rows.
        classes: name -> id, where evaluation data must be numbered in the same way.
        scale: how labels are scaled.
    """

    settings: DataSet
    spec: LossSpec
    data: Any
    binding: Binding
    num_classes: int | None = None
    label_dimension: int | None = None
    notes: list[str] = field(default_factory=list)
    classes: dict[str, int] | None = None
    scale: Any = None

    @property
    def name(self) -> str:
        """Empty where the run has one data set without a name."""
        return self.settings.name


@dataclass
class EvalSource:
    """One evaluation data set, checked.

    Args:
        name: "" for one without a name.
        data: the bound rows.
        binding: which columns they are.
        source: the training data set that it belongs to, or None.
        prompts: role -> text.
    """

    name: str
    data: Any
    binding: Binding
    source: Source | None
    prompts: dict[str, str]


def bind_source(settings: DataSet, raw: Any, spec: LossSpec) -> Source:
    """Bind and check one data set; an `EmbedlossError` names every fault.

    Args:
        settings: what is typed about it.
        raw: its rows as they were read.
        spec: of its loss.
    """
    from embedloss.check import bind, bound_dataset, check_rows, class_ids, column_kinds, label_scale
    from embedloss.streaming import FirstRows

    if isinstance(raw, FirstRows):
        return _bind_stream(settings, raw, spec)
    with naming(settings.name):
        binding = bind(
            column_kinds(raw),
            spec.data_formats(),
            loss_name=spec.name,
            any_format=spec.any_format,
            weights=spec.row_weights,
            mapping=settings.map,
            drop=settings.drop,
        )
        found = check_rows(raw, binding, spec, scale_labels=settings.scale_labels, sampler=settings.sampler)
        found.raise_if_faulty()
        scale = label_scale(found, spec) if settings.scale_labels else None
        data = bound_dataset(raw, binding, scale=scale)
    source = Source(settings, spec, data, binding, notes=list(found.warnings), scale=scale)
    source.classes = class_ids(raw, binding) if binding.format.name == "pairs+class" else None
    if binding.format.label == "class":
        values = data["label"][:]
        if not isinstance(values[0], list):
            source.num_classes = int(max(values)) + 1
    if binding.format.label == "embedding":
        first = data[0]["label"]
        source.label_dimension = len(first[0] if isinstance(first[0], list) else first)
    return source


def _bind_stream(settings: DataSet, first: Any, spec: LossSpec) -> Source:
    """As `bind_source`, by the first rows of a stream."""
    from embedloss.check import bind, check_tables
    from embedloss.streaming import Stream

    with naming(settings.name):
        binding = bind(
            first.kinds(),
            spec.data_formats(),
            loss_name=spec.name,
            any_format=spec.any_format,
            weights=spec.row_weights,
            mapping=settings.map,
            drop=settings.drop,
        )
        found = check_tables([first.table], binding, spec, False, settings.sampler)
        found.raise_if_faulty()
        stream = Stream(
            first,
            binding,
            spec,
            sampler=settings.sampler,
            batch_size=settings.batch_size,
            weight=settings.weight,
        )
    source = Source(settings, spec, stream, binding, notes=list(found.warnings))
    source.num_classes = stream.num_classes()
    source.classes = stream.classes if binding.format.name == "pairs+class" else None
    if binding.format.label == "embedding" and binding.label:
        vector = first.table[binding.label][0].as_py()
        source.label_dimension = len(vector[0] if isinstance(vector[0], list) else vector)
    return source


def bind_evaluation(name: str, raw: Any, source: Source | None, prompts: dict[str, str]) -> EvalSource:
    """Bind and check one evaluation data set: as its training data set, or as the best of the formats that fit."""
    from embedloss.binding import fitting
    from embedloss.check import bind, bound_dataset, check_rows, column_kinds
    from embedloss.examine import plain_spec

    with naming(name):
        report: Report
        if source is None:
            binding = fitting(column_kinds(raw))[0]
            report = check_rows(raw, binding, plain_spec(binding.format), sampler="random")
            report.raise_if_faulty()
            own = {role: text for role, text in prompts.items() if role in binding.format.roles}
            return EvalSource(name, bound_dataset(raw, binding), binding, None, own)
        settings, spec = source.settings, source.spec.for_evaluation()
        binding = bind(
            column_kinds(raw),
            spec.data_formats(),
            loss_name=spec.name,
            any_format=spec.any_format,
            weights=spec.row_weights,
            mapping=settings.map,
            drop=settings.drop,
        )
        report = check_rows(raw, binding, spec, scale_labels=settings.scale_labels, sampler="random")
        report.raise_if_faulty()
        # A classifier's outputs are numbered by the training data, and labels are scaled as there.
        data = bound_dataset(raw, binding, classes=source.classes, scale=source.scale)
        return EvalSource(name, data, binding, source, settings.prompts)


def evaluation_paths(config: RunConfig) -> dict[str, str]:
    """Name -> path of the evaluation data; one set without a name is called ""."""
    if not config.eval_data:
        return {}
    return {"": config.eval_data} if isinstance(config.eval_data, str) else dict(config.eval_data)


def load_named(name: str, path: str) -> Any:
    """The rows of a data set as they are; errors name the set."""
    from embedloss.data import load_rows

    with naming(name):
        return load_rows(path)


def open_named(name: str, path: str, buffer: int) -> Any:
    """The first rows of a data set that is read as a stream; errors name the set."""
    from embedloss.streaming import FirstRows

    with naming(name):
        return FirstRows(path, buffer)


def bind_sources(config: RunConfig, raws: dict[str, Any], specs: dict[str, LossSpec]) -> list[Source]:
    """Every training data set, with its prompts."""
    sources = [bind_source(settings, raws[settings.name], specs[settings.name]) for settings in data_sets(config)]
    _share_prompts(config, sources)
    return sources


def bind_evaluations(config: RunConfig, raws: dict[str, Any], sources: list[Source]) -> list[EvalSource]:
    """Every evaluation data set; one belongs to the training data set of the same name, or to the only one."""
    by_name = {source.name: source for source in sources}
    only = sources[0] if len(sources) == 1 and (isinstance(config.eval_data, str) or not sources[0].name) else None
    return [bind_evaluation(name, raw, by_name.get(name, only), config.prompts) for name, raw in raws.items()]


def _share_prompts(config: RunConfig, sources: list[Source]) -> None:
    """Prompts of the run go to every data set that has the role; E401 for a role that a data set does not have."""
    several = not isinstance(config.data, str)
    shared = config.prompts if several else {}
    every = list(dict.fromkeys(role for source in sources for role in source.binding.format.roles))
    for role in shared:
        if role not in every:
            raise _unknown_role(role, every, "")
    for source in sources:
        roles = source.binding.format.roles
        for role in source.settings.prompts:
            if role not in roles:
                raise _unknown_role(role, roles, source.name)
        source.settings.prompts = {**{r: t for r, t in shared.items() if r in roles}, **source.settings.prompts}


def _unknown_role(role: str, roles: Any, name: str) -> EmbedlossError:
    near = difflib.get_close_matches(role, roles, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    where = f"data set '{name}': " if name else ""
    return EmbedlossError("E401", f"{where}prompt for the unknown role '{role}'.{hint} Roles: {', '.join(roles)}.")


def mean_metrics(found: dict[str, dict[str, float]], primaries: dict[str, str | None]) -> dict[str, float]:
    """The metrics of all evaluation sets under their names, and averages over the sets.

    Args:
        found: name of the set -> metric -> value.
        primaries: name of the set -> its main metric.

    Returns:
        "nli/ndcg@10", ...; "mean/ndcg@10" for every metric that all sets have; and "mean/main", the mean of each set's main
        metric, whatever the formats. One set without a name keeps its own names.
    """
    if list(found) == [""]:
        return dict(found[""])
    metrics = {f"{name}/{key}" if name else key: value for name, own in found.items() for key, value in own.items()}
    if len(found) > 1:
        first, *others = found.values()
        for key in first:
            if all(key in own for own in others):
                metrics[f"mean/{key}"] = sum(own[key] for own in found.values()) / len(found)
        main = [found[name].get(primaries.get(name) or "") for name in found]
        known = [value for value in main if value is not None]
        if len(known) == len(found):
            metrics["mean/main"] = sum(known) / len(known)
    return metrics
