"""Name -> spec -> loss. Built from the plugins; holds no name of its own."""

from __future__ import annotations

import contextlib
import difflib
import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from embedloss import expression
from embedloss.errors import EmbedlossError
from embedloss.expression import Call, Sum
from embedloss.known import distribution_of
from embedloss.plugins import PluginManager, plugin_manager
from embedloss.spec import LossSpec, constructor_parameters, normalise

if TYPE_CHECKING:
    from embedloss.loss import Loss

EVERYTHING = "pip install 'embedloss[all]'"


def _index(manager: PluginManager) -> dict[str, LossSpec]:
    found: dict[str, LossSpec] = {}
    for plugin in manager.plugins:
        for spec in plugin.losses:
            for name in (spec.name, *spec.aliases):
                other = found.get(name)
                if other is not None and other.target != spec.target:
                    raise EmbedlossError(
                        "E204",
                        f"the name '{name}' is registered by '{other.distribution}' ({other.name}) and by "
                        f"'{spec.distribution}' ({spec.name}). Uninstall one, or set "
                        f"EMBEDLOSS_DISABLE_PLUGINS={spec.distribution}.",
                    )
                found[name] = spec
    return found


def list_losses(
    *,
    format: str | None = None,
    family: str | None = None,
    model_kind: str | None = None,
    labels: str | None = None,
) -> list[LossSpec]:
    """Specs of all installed losses, sorted by family and name. Imports no torch.

    Args:
        format: "pairs" (with any label) or exactly "pairs+score".
        family: a family such as "ranking".
        model_kind: "bi-encoder" or "cross-encoder".
        labels: a label kind such as "score", or "none".
    """
    from embedloss.formats import LABELS, formats_like

    manager = plugin_manager()
    _index(manager)  # a name taken twice is an error here already
    specs = [spec for plugin in manager.plugins for spec in plugin.losses]
    if format is not None:
        wanted = {f.name for f in formats_like(format)}
        specs = [s for s in specs if s.any_format or wanted.intersection(s.format_names())]
    if family is not None:
        known = sorted({s.family for s in specs})
        specs = [s for s in specs if normalise(s.family) == normalise(family)]
        if not specs and format is None:
            raise EmbedlossError("E201", f"no installed family '{family}'. Installed: {', '.join(known) or 'none'}.")
    if model_kind is not None:
        kinds = ("bi-encoder", "cross-encoder")
        kind = normalise(model_kind)
        if kind not in kinds:
            raise EmbedlossError("E201", f"unknown kind of model '{model_kind}'. Kinds: {', '.join(kinds)}.")
        specs = [s for s in specs if kind in s.models]
    if labels is not None:
        wanted_label = None if labels == "none" else labels
        if wanted_label is not None and wanted_label not in LABELS:
            raise EmbedlossError("E201", f"unknown label kind '{labels}'. Kinds: none, {', '.join(LABELS)}.")
        specs = [s for s in specs if any(f.label == wanted_label for f in s.data_formats())]
    return sorted(specs, key=lambda s: (s.family, s.name))


def get_spec(name: str) -> LossSpec:
    """The spec of a loss by name or alias; E201 with the nearest names, or what to install, otherwise."""
    index = _index(plugin_manager())
    key = normalise(name)
    if key in index:
        return index[key]
    for plugin in plugin_manager().plugins:
        if key in plugin.refused:
            raise EmbedlossError(
                "E205", f"the loss '{name}' is of '{plugin.distribution}', which cannot be used: {plugin.reason}"
            )
    distribution = distribution_of(key)
    if distribution is not None:
        raise EmbedlossError("E201", f"the loss '{name}' is not installed. Type: pip install {distribution}")
    near = difflib.get_close_matches(key, index, n=3, cutoff=0.6)
    if near:
        raise EmbedlossError("E201", f"unknown loss '{name}'. Did you mean {' or '.join(near)}?")
    if not index:
        raise EmbedlossError("E201", f"unknown loss '{name}', and no loss is installed. Type: {EVERYTHING}")
    installed = len({spec.name for spec in index.values()})
    raise EmbedlossError("E201", f"unknown loss '{name}'. `embedloss list` prints the {installed} installed ones.")


def parameters_of(spec: LossSpec) -> dict[str, inspect.Parameter]:
    """The constructor's parameters of a loss (imports it)."""
    return constructor_parameters(spec.load())


@contextlib.contextmanager
def _pointing(node: Call, text: str) -> Iterator[None]:
    """Adds to a mistake in a part of an expression where that part is."""
    try:
        yield
    except EmbedlossError as error:
        if node.column == 1 or "\n" in error.message or not text:
            raise
        raise EmbedlossError(error.code, f"{error.message} It is {expression.pointed(text, node.column)}") from error


def _build(node: Any, text: str = "") -> Any:
    if isinstance(node, Call):
        from embedloss.schedules import SCHEDULES

        schedule = SCHEDULES.get(normalise(node.name))
        with _pointing(node, text):
            spec = get_spec(node.name) if schedule is None else None
        target, name = (schedule, node.name) if spec is None else (spec.load(), spec.name)
        args, kwargs = [_build(a, text) for a in node.args], {k: _build(v, text) for k, v in node.kwargs.items()}
        with _pointing(node, text):
            made = _construct(target, name, args, kwargs)
            if spec is not None:
                made.bind_spec(spec)
        return made
    if isinstance(node, Sum):
        from embedloss.loss import WeightedSum

        return WeightedSum([(_build(w, text) if isinstance(w, Call) else w, _build(t, text)) for w, t in node.terms])
    if isinstance(node, list):
        return [_build(v, text) for v in node]
    return node


_TYPES: dict[str, tuple[str, tuple[type, ...]]] = {  # of constructor parameters -> in words, and what a literal may be
    "bool": ("True or False", (bool,)),
    "int": ("a whole number", (int,)),
    "float": ("a number", (int, float)),
    "str": ("a text", (str,)),
    "None": ("None", (type(None),)),
}


def _check_type(name: str, parameter: inspect.Parameter, value: Any) -> None:
    """E203 for a literal that is none of the simple types by which a parameter is declared."""
    declared = str(getattr(parameter.annotation, "__name__", parameter.annotation)).split(" | ")
    literal = isinstance(value, (bool, int, float, str, list, tuple, dict, type(None))) or hasattr(value, "to_expression")
    if not literal or not set(declared) <= set(_TYPES):
        return
    allowed = [kind for one in declared for kind in _TYPES[one][1]]
    if type(value) not in allowed:
        words = " or ".join(_TYPES[one][0] for one in declared)
        raise EmbedlossError("E203", f"'{name}': {parameter.name} must be {words}, got {value!r}.")


def _construct(target: Any, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
    parameters = constructor_parameters(target)
    renamed: dict[str, str] = getattr(target, "parameter_aliases", {})  # names that other libraries use
    kwargs = {renamed.get(k, k): v for k, v in kwargs.items()}
    unknown = [k for k in kwargs if k not in parameters]
    if unknown:
        near = difflib.get_close_matches(unknown[0], parameters, n=1, cutoff=0.5)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise EmbedlossError(
            "E203", f"'{name}' has no parameter '{unknown[0]}'.{hint} It takes: {', '.join(parameters) or 'no parameters'}."
        )
    failure: TypeError | None = None
    try:
        made = target(*args, **kwargs)
    except ValueError as exception:
        raise EmbedlossError("E203", f"'{name}': {exception}") from exception
    except TypeError as exception:
        failure = exception
    for parameter, value in (*zip(parameters, args, strict=False), *kwargs.items()):
        _check_type(name, parameters[parameter], value)
    if failure is not None:
        raise EmbedlossError("E203", f"'{name}': {failure}") from failure
    return made


def create_loss(expression_or_name: str, **parameters: Any) -> Loss:
    """Make a loss from an expression, or from a name and keyword parameters.

    Example:
        >>> create_loss("mnrl(scale=20)")  # doctest: +SKIP
        >>> create_loss("mnrl", scale=20.0)  # doctest: +SKIP

    Raises:
        EmbedlossError: E201 unknown loss, E202 not an expression, E203 wrong parameter.
    """
    node = expression.parse(expression_or_name)
    if parameters:
        if not isinstance(node, Call):
            raise EmbedlossError("E203", "keyword parameters go with one loss, not with a sum.")
        node = Call(node.name, node.args, {**node.kwargs, **parameters}, node.column)
    loss = _build(node, expression.one_line(expression_or_name))
    from embedloss.loss import Loss

    if not isinstance(loss, Loss):
        raise EmbedlossError("E202", f"'{expression_or_name}' is a schedule, not a loss.")
    return loss


def expression_specs(text: str) -> list[LossSpec]:
    """The specs of every loss named in an expression, outermost first. Imports no torch; E201 and E202 as `create_loss`."""
    from embedloss.schedules import SCHEDULE_NAMES

    found: list[LossSpec] = []
    line = expression.one_line(text)

    def walk(node: Any) -> None:
        if isinstance(node, Call):
            if normalise(node.name) not in SCHEDULE_NAMES:
                with _pointing(node, line):
                    found.append(get_spec(node.name))
            for child in (*node.args, *node.kwargs.values()):
                walk(child)
        elif isinstance(node, Sum):
            for _, term in node.terms:
                walk(term)
        elif isinstance(node, (list, tuple)):
            for child in node:
                walk(child)

    walk(expression.parse(text))
    return found
