"""Name -> spec -> loss. Built from the plugins; holds no name of its own."""

from __future__ import annotations

import difflib
import inspect
from typing import TYPE_CHECKING, Any

from embedloss import expression
from embedloss.errors import EmbedlossError
from embedloss.expression import Call, Sum
from embedloss.known import distribution_of
from embedloss.plugins import PluginManager, plugin_manager
from embedloss.spec import LossSpec, normalise

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
    parameters = inspect.signature(spec.load()).parameters
    return {k: p for k, p in parameters.items() if k != "self" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def _build(node: Any) -> Any:
    if isinstance(node, Call):
        from embedloss.schedules import SCHEDULES

        if normalise(node.name) in SCHEDULES:
            return _construct(SCHEDULES[normalise(node.name)], node.name, node.args, node.kwargs)
        spec = get_spec(node.name)
        loss = _construct(spec.load(), spec.name, node.args, node.kwargs)
        loss.bind_spec(spec)
        return loss
    if isinstance(node, Sum):
        from embedloss.loss import WeightedSum

        return WeightedSum([(_build(w) if isinstance(w, Call) else w, _build(t)) for w, t in node.terms])
    if isinstance(node, list):
        return [_build(v) for v in node]
    return node


def _construct(target: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    signature = inspect.signature(target).parameters.values()  # *args: a class without a constructor of its own
    parameters = [p.name for p in signature if p.name != "self" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    renamed: dict[str, str] = getattr(target, "parameter_aliases", {})  # names that other libraries use
    kwargs = {renamed.get(k, k): v for k, v in kwargs.items()}
    unknown = [k for k in kwargs if k not in parameters]
    if unknown:
        near = difflib.get_close_matches(unknown[0], parameters, n=1, cutoff=0.5)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise EmbedlossError(
            "E203", f"'{name}' has no parameter '{unknown[0]}'.{hint} It takes: {', '.join(parameters) or 'no parameters'}."
        )
    try:
        return target(*(_build(a) for a in args), **{k: _build(v) for k, v in kwargs.items()})
    except (TypeError, ValueError) as exception:
        raise EmbedlossError("E203", f"'{name}': {exception}") from exception


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
    loss = _build(node)
    from embedloss.loss import Loss

    if not isinstance(loss, Loss):
        raise EmbedlossError("E202", f"'{expression_or_name}' is a schedule, not a loss.")
    return loss


def expression_specs(text: str) -> list[LossSpec]:
    """The specs of every loss named in an expression, outermost first. Imports no torch; E201 and E202 as `create_loss`."""
    from embedloss.schedules import SCHEDULE_NAMES

    found: list[LossSpec] = []

    def walk(node: Any) -> None:
        if isinstance(node, Call):
            if normalise(node.name) not in SCHEDULE_NAMES:
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
