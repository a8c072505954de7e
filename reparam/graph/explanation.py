"""The answer to "why is this module what it is?" as data: frozen, JSON both ways."""

from typing import Any, Literal

from pydantic import Field

from reparam.ops.site import Site
from reparam.recipe.schema import Frozen, Kind

Outcome = Literal["becomes", "became", "keep", "no rule", "refused", "no gain", "idle", "inside"]


class Change(Frozen):
    """What to write for another outcome: `text` says what it does and where it goes, `toml` is ready to paste."""

    text: str
    toml: str | None = None


class Verdict(Frozen):
    """What one stage does with one site at the path, or with a module that lies inside a converted one.

    `rule` is the rule that decided, `missed` says of each rule that could have taken the site which test failed first.
    "became" is a site that an earlier stage has converted, `is_done` a stage that the model has been through.
    """

    stage: int
    stage_name: str
    outcome: Outcome
    kind: Kind | None = None
    number: int = 0
    operator: str | None = None
    options: dict[str, Any] = Field({})
    rule: str | None = None
    reason: str | None = None
    remark: str | None = None
    missed: dict[str, str] = Field({})
    changes: tuple[Change, ...] = ()
    is_done: bool = False


class Explanation(Frozen):
    """One module of a model under one recipe.

    `asked` is what was asked for: a path, a parameter's name or a pattern. `alike` are the other modules that fit it
    and share the explanation, `others` those that do not. `verdicts` come in the order of the stages. `no_site` gives
    for each kind the first test that failed, where the module is a site of no kind. `within` is the innermost
    attention or MLP around it, `parts` the sites inside it by kind. `unseen` says what the run did not show.
    """

    asked: str
    path: str
    type: str
    recipe: str
    alike: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    sites: tuple[Site, ...] = ()
    facts: tuple[str, ...] = ()
    no_site: dict[Kind, str] = Field({})
    within: str | None = None
    parts: dict[Kind, tuple[str, ...]] = Field({})
    unseen: tuple[str, ...] = ()
