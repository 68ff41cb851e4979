"""The three hooks. Names, arguments and meaning are public: plugins of others rely on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from embedloss.spec import LossSpec

PROJECT = "embedloss"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Hooks:
    """The hook specifications, as methods; a plugin implements any of them as functions or methods."""

    @hookspec
    def embedloss_register_losses(self) -> Sequence[LossSpec]:  # type: ignore[empty-body]
        """Called once, when losses are listed or created.

        Returns:
            The plugin's losses as specs. Do not import torch here: `embedloss list` must answer at once.
        """

    @hookspec(firstresult=True)
    def embedloss_wrap_model(self, model: Any, kind: str | None) -> Any:
        """Called when a model object that is no `Encoder` is given to the trainer. Stops at the first non-None result.

        Args:
            model: the foreign object.
            kind: "bi-encoder", "cross-encoder" or None.

        Returns:
            An `embedloss.encoders.Encoder` round it, or None if this plugin does not know the object.
        """

    @hookspec
    def embedloss_register_commands(self, app: Any) -> None:
        """Called when the command line starts.

        Args:
            app: the `typer.Typer` application, to which commands may be added.
        """
