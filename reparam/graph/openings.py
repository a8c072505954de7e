"""The attention owners that a stage opens: each core alone to see whether it can be, then all of one owner together."""

from collections.abc import Sequence

from reparam.graph.attention_surgery import CoreOpener, OpenedCore
from reparam.graph.finders.base import Scene
from reparam.graph.records import Step
from reparam.ops.site import AttentionForm, Site


class Openings:
    """What was opened while a stage was being planned."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._opener = CoreOpener()
        self._alone: dict[tuple[str, int], OpenedCore] = {}

    def try_(self, site: Site) -> None:
        """Opens one core.

        Raises:
            RewriteError: its owner's forward cannot be traced, or does not show it.
        """
        assert site.attention is not None
        self._alone[site.path, site.number] = self._open(site.path, {site.number: site.attention})

    def together(self, steps: Sequence[Step]) -> dict[str, OpenedCore]:
        """Returns the forwards of each owner with all of its accepted cores."""
        forms: dict[str, dict[int, AttentionForm]] = {}
        for step in steps:
            if step.site.attention is not None and (step.site.path, step.site.number) in self._alone:
                forms.setdefault(step.site.path, {})[step.site.number] = step.site.attention
        return {
            path: self._alone[path, next(iter(own))] if len(own) == 1 else self._open(path, own)
            for path, own in forms.items()
        }

    def _open(self, path: str, forms: dict[int, AttentionForm]) -> OpenedCore:
        owner, calls = self._scene.model.get_submodule(path), self._scene.trace.calls_of(path)
        return self._opener.open(owner, calls, path, forms)
