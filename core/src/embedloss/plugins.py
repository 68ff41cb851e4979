"""Find plugins through entry points; one that cannot be loaded is reported and stops nothing.

pluggy's own `load_setuptools_entrypoints` is not used: it has no error handling, so one broken third-party import would
stop every other plugin.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

import embedloss
from embedloss import hookspecs
from embedloss.errors import EmbedlossError
from embedloss.known import KNOWN
from embedloss.spec import LossSpec, normalise

GROUP = "embedloss"
DISABLE = "EMBEDLOSS_DISABLE_PLUGINS"
SLOW_SECONDS = 0.5


@dataclass
class Plugin:
    """A plugin that was found, whether it could be used or not."""

    distribution: str
    version: str
    name: str
    status: str = "loaded"  # loaded | disabled | failed
    reason: str = ""
    warnings: list[str] = field(default_factory=list)
    losses: list[LossSpec] = field(default_factory=list)
    module: Any = None
    refused: list[str] = field(default_factory=list)  # names of the losses that it would have had

    def fail(self, reason: str) -> None:
        """Remember why the plugin cannot be used."""
        self.refused = [name for spec in self.losses for name in (spec.name, *spec.aliases)]
        self.status, self.reason, self.losses = "failed", reason, []

    def to_json(self) -> dict[str, object]:
        """Plain data for `--json`."""
        return {
            "distribution": self.distribution,
            "version": self.version,
            "name": self.name,
            "status": self.status,
            "reason": self.reason,
            "warnings": self.warnings,
            "losses": [s.name for s in self.losses],
        }


def _unmet(requires: Iterable[str]) -> str | None:
    """The requirement on embedloss that the running version does not meet, as in the metadata, or None."""
    wanted = [text for text in requires if re.match(r"embedloss\s*([\[<>=!~;( ]|$)", text, re.IGNORECASE)]
    if not wanted:
        return None
    from packaging.requirements import Requirement

    for text in wanted:
        requirement = Requirement(text)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and not requirement.specifier.contains(embedloss.__version__, prereleases=True):
            return f"embedloss{requirement.specifier}"
    return None


@contextlib.contextmanager
def _contained(plugin: Plugin) -> Iterator[None]:
    """Catch whatever a plugin raises (also `sys.exit`), and what it prints."""
    printed = io.StringIO()
    begin = time.perf_counter()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    except KeyboardInterrupt:
        raise
    except BaseException as exception:
        plugin.fail(f"{type(exception).__name__}: {exception}" if str(exception) else type(exception).__name__)
    if printed.getvalue().strip():
        plugin.warnings.append("printed while it was loaded; the output was left out")
    seconds = time.perf_counter() - begin
    if seconds > SLOW_SECONDS:
        plugin.warnings.append(f"took {seconds:.1f} s to load (does it import torch?)")


class PluginManager:
    """All plugins of the environment, and the local files given with `--plugin`."""

    def __init__(self) -> None:
        self.plugins: list[Plugin] = []
        self._pm = pluggy.PluginManager(hookspecs.PROJECT)
        self._pm.add_hookspecs(hookspecs.Hooks)

    @property
    def hook(self) -> Any:
        """Pluggy's hook caller."""
        return self._pm.hook

    def load_installed(self) -> None:
        """Load every entry point of the group "embedloss", but for the distributions named in EMBEDLOSS_DISABLE_PLUGINS."""
        disabled = {normalise(d) for d in os.environ.get(DISABLE, "").split(",") if d.strip()}
        points = sorted(importlib.metadata.entry_points(group=GROUP), key=lambda point: point.name)
        for point in points:
            distribution = point.dist.name if point.dist else point.module
            plugin = Plugin(distribution, point.dist.version if point.dist else "", point.name)
            self.plugins.append(plugin)
            if normalise(distribution) in disabled or "*" in disabled:
                plugin.status, plugin.reason = "disabled", f"named in {DISABLE}"
                continue
            with _contained(plugin):
                unmet = _unmet(getattr(point.dist, "requires", None) or ())
                if unmet:
                    plugin.fail(f"needs {unmet}, and this is embedloss {embedloss.__version__}")
                    continue
                plugin.module = point.load()
            if plugin.status == "loaded":
                self._register(plugin)
        self._settle_names()

    def _settle_names(self) -> None:
        """Of distributions that register one name, ours keep it; of others none does, because any choice is a guess."""
        holders: dict[str, dict[str, Plugin]] = {}
        for plugin in self.plugins:
            for spec in plugin.losses:
                for name in (spec.name, *spec.aliases):
                    holders.setdefault(name, {}).setdefault(spec.target, plugin)
        for name, by_target in holders.items():
            if len(by_target) == 1:
                continue
            contenders = list(by_target.values())
            ours = [p for p in contenders if p.distribution in KNOWN]
            for plugin in [p for p in contenders if p not in ours[:1] and p.status == "loaded"]:
                others = sorted({p.distribution for p in contenders if p is not plugin}) or [plugin.distribution]
                plugin.fail(
                    f"the name '{name}' is registered by {' and '.join(others)} as well. Uninstall one, or set "
                    f"{DISABLE}={plugin.distribution}."
                )
                if self._pm.is_registered(plugin.module):
                    self._pm.unregister(plugin.module)

    def load_file(self, path: str | os.PathLike[str]) -> Plugin:
        """Load one Python file as a plugin (`--plugin ./my_loss.py`). Unlike an installed one it must work: E205 otherwise."""
        file = Path(path)
        if not file.is_file():
            raise EmbedlossError("E205", f"plugin file '{path}' does not exist.")
        resolved = str(file.resolve())
        for known in self.plugins:
            if known.distribution == resolved:
                return known
        plugin = Plugin(resolved, "", file.stem)
        module_name = f"embedloss_local_{file.stem}"
        spec = importlib.util.spec_from_file_location(module_name, file)
        if spec is None or spec.loader is None:
            raise EmbedlossError("E205", f"plugin file '{path}' is not a Python file (.py).")
        module = importlib.util.module_from_spec(spec)
        with _contained(plugin):
            sys.modules[module_name] = module  # so that "module:Class" targets, pickling and workers find it
            spec.loader.exec_module(module)
        plugin.module = module
        if plugin.status == "loaded":
            self._register(plugin)
        if plugin.status == "failed":
            sys.modules.pop(module_name, None)
            raise EmbedlossError("E205", f"plugin file '{path}' cannot be used: {plugin.reason}")
        self.plugins.append(plugin)
        return plugin

    def register(self, module: ModuleType | object, distribution: str = "(local)") -> Plugin:
        """Register an object that has hook implementations; for tests and notebooks."""
        plugin = Plugin(distribution, "", distribution, module=module)
        self._register(plugin)
        if plugin.status == "failed":
            raise EmbedlossError("E205", f"plugin '{distribution}' cannot be used: {plugin.reason}")
        self.plugins.append(plugin)
        return plugin

    def unregister(self, plugin: Plugin) -> None:
        """Take a plugin out again."""
        if self._pm.is_registered(plugin.module):
            self._pm.unregister(plugin.module)
        self.plugins = [p for p in self.plugins if p is not plugin]

    def _register(self, plugin: Plugin) -> None:
        with _contained(plugin):
            self._pm.register(plugin.module)
            unknown = [
                name for name in dir(plugin.module) if name.startswith("embedloss_") and not hasattr(hookspecs.Hooks, name)
            ]
            unknown = [name for name in unknown if callable(getattr(plugin.module, name))]
            if unknown:
                hooks = ", ".join(name for name in dir(hookspecs.Hooks) if name.startswith("embedloss_"))
                raise ValueError(f"unknown hook '{unknown[0]}'; the hooks are {hooks}")
            self._pm.check_pending()
        if plugin.status == "loaded":
            with _contained(plugin):
                plugin.losses = list(self._losses_of(plugin))
        if plugin.status == "failed" and self._pm.is_registered(plugin.module):
            self._pm.unregister(plugin.module)

    def _losses_of(self, plugin: Plugin) -> Iterator[LossSpec]:
        for caller in self._pm.hook.embedloss_register_losses.get_hookimpls():
            if caller.plugin is not plugin.module:
                continue
            result: Any = caller.function()
            found: list[object] = [result] if isinstance(result, LossSpec) else list(result or ())
            for spec in found:
                if not isinstance(spec, LossSpec):
                    raise TypeError(f"embedloss_register_losses returned {type(spec).__name__}, not LossSpec")
                object.__setattr__(spec, "distribution", plugin.distribution)
                yield spec


@cache
def plugin_manager() -> PluginManager:
    """The plugin manager of this process, loaded on first use."""
    manager = PluginManager()
    manager.load_installed()
    return manager
