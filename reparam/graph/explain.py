"""Explains one module of a planned model: its fate in each stage, the test that decided it, and what changes it."""

import re
from collections.abc import Iterator, Sequence

from reparam.graph.explained_path import find_modules
from reparam.graph.explanation import Explanation, Verdict
from reparam.graph.finders.attention import why_no_attention
from reparam.graph.finders.base import Scene, qualified_type
from reparam.graph.finders.leaves import why_no_leaf
from reparam.graph.finders.mlp import why_no_mlp
from reparam.graph.plan_index import PlanIndex
from reparam.graph.records import Plan, Skip, Step
from reparam.graph.selector import mismatch
from reparam.graph.site_facts import site_facts
from reparam.graph.verdict_changes import Spot, as_pattern, changes_of_skip, changes_of_step
from reparam.ops.base import OPERATORS, Operator
from reparam.ops.site import Site
from reparam.recipe.schema import OPERATOR_KEEP, Kind

_INDEX = re.compile(r"(?<=[._])\d+(?=\.|\b)")


def explain_path(scene: Scene, plan: Plan, asked: str, *, stages_done: int = 0) -> Explanation:
    """Explains the first module that `asked` stands for.

    Args:
        scene: a run of the dense model, or of the model as `stages_done` stages left it.
        plan: what the stages do.
        asked: a module's dotted path, the name of a parameter (its owner is explained), a glob, or "re:..." .
        stages_done: how many stages the model has been through.
    Raises:
        ModelError: nothing in the model or the plan has that name.
    """
    index = PlanIndex(plan)
    matched = find_modules(scene.model, plan, asked)
    path = matched[0]
    outlook = _outlook(scene, index, path)
    alike = tuple(other for other in matched[1:] if _outlook(scene, index, other) == outlook)
    others = tuple(other for other in matched[1:] if other not in alike)
    # A rule for the pattern takes the alike ones too; where others fit it, the rule must name the one module.
    is_for_all = bool(alike) and not others
    paths, pattern = ((path, *alike), asked) if is_for_all else ((path,), as_pattern(path))
    sites, enclosing = index.sites(path), index.within(path)
    is_dense = _operator_around(scene, path) is None
    return Explanation(
        asked=asked,
        path=path,
        type=_type_of(scene, sites, path),
        recipe=plan.recipe.name,
        alike=alike,
        others=others,
        verdicts=tuple(_verdicts(index, paths, pattern=pattern, done=stages_done)),
        sites=sites,
        # Several cores of one forward are mostly alike.
        facts=tuple(fact for facts in dict.fromkeys(map(site_facts, sites)) for fact in facts),
        no_site=_why_no_site(scene, path) if is_dense and not sites else {},
        within=None if enclosing is None else _named(enclosing),
        parts=index.parts(path),
        unseen=tuple(_unseen(scene, path, sites)) if is_dense else (),
    )


def _verdicts(index: PlanIndex, paths: tuple[str, ...], *, pattern: str, done: int) -> Iterator[Verdict]:
    """The verdicts on the first path, with advice for all of them."""
    made = list(_iter_verdicts(index, paths, pattern))
    for verdict in made:
        peers = [v for v in made if (v.kind, v.number) == (verdict.kind, verdict.number)]
        changes = () if _is_left_to_another(verdict, peers) else verdict.changes
        yield verdict.model_copy(update={"is_done": verdict.stage < done, "changes": changes})


def _is_left_to_another(verdict: Verdict, peers: Sequence[Verdict]) -> bool:
    """Whether a stage needs no advice: another one converts the site or decides on it, or has given the advice."""
    if verdict.outcome == "becomes":
        return False
    is_decided = any(peer.outcome != "no rule" for peer in peers)
    is_repeated = verdict.outcome == "no rule" and (is_decided or verdict.stage != peers[0].stage)
    return is_repeated or any(peer.outcome == "becomes" for peer in peers)


def _iter_verdicts(index: PlanIndex, paths: tuple[str, ...], pattern: str) -> Iterator[Verdict]:
    for stage in range(len(index.plan.stages)):
        records, around = index.at(stage, paths[0]), index.around(stage, paths[0])
        spot = Spot(plan=index.plan, stage=stage, paths=paths, pattern=pattern)
        for record in records:
            yield _of_record(record, spot, around)
        if around and not records:
            yield _of_place(index.plan, stage, around[0], paths[0])


def _of_record(record: Step | Skip, spot: Spot, around: Sequence[Step]) -> Verdict:
    verdict = Verdict(
        stage=spot.stage,
        stage_name=spot.plan.stages[spot.stage].name,
        outcome="becomes" if isinstance(record, Step) else record.cause,
        kind=record.site.kind,
        number=record.site.number,
        rule=record.rule,
    )
    if isinstance(record, Step):
        details = {"operator": record.operator, "options": record.options, "remark": record.remark}
        return verdict.model_copy(update={**details, "changes": tuple(changes_of_step(record, spot))})
    missed = _missed(spot.plan, spot.stage, record.site) if record.cause == "no rule" else {}
    changes = tuple(changes_of_skip(record, spot, around=around))
    return verdict.model_copy(update={"reason": record.reason, "missed": missed, "changes": changes})


def _of_place(plan: Plan, stage: int, step: Step, path: str) -> Verdict:
    """The verdict on a module that is no site of this stage: it was converted before, or lies inside what is."""
    is_itself = step.site.path == path
    return Verdict(
        stage=stage,
        stage_name=plan.stages[stage].name,
        outcome="became" if is_itself else "inside",
        kind=step.site.kind,
        operator=step.operator,
        rule=step.rule,
        reason=None if is_itself else f'a part of "{step.site.path}", which becomes {step.operator}',
    )


def _missed(plan: Plan, stage: int, site: Site) -> dict[str, str]:
    failed = {
        f"stage {stage}, rule {number}": mismatch(rule.match, site)
        for number, rule in enumerate(plan.recipe.stages[stage].rules)
        if rule.operator != OPERATOR_KEEP and OPERATORS.get(rule.operator).kind == site.kind
    }
    return {rule: reason for rule, reason in failed.items() if reason is not None}


def _why_no_site(scene: Scene, path: str) -> dict[Kind, str]:
    reasons: dict[Kind, str | None] = {
        "attention": why_no_attention(scene, path),
        "mlp": why_no_mlp(scene, path),
        "linear": why_no_leaf(scene, path, kind="linear"),
        "conv2d": why_no_leaf(scene, path, kind="conv2d"),
    }
    return {kind: reason for kind, reason in reasons.items() if reason is not None}


def _outlook(scene: Scene, index: PlanIndex, path: str) -> object:
    """What two modules share whose explanations read the same but for the numbers in paths."""
    verdicts = [
        (v.stage, v.kind, v.number, v.outcome, v.operator, v.options, v.rule, v.remark, _INDEX.sub("N", v.reason or ""))
        for v in _iter_verdicts(index, (path,), pattern=path)
    ]
    return _type_of(scene, index.sites(path), path), verdicts


def _named(site: Site) -> str:
    return f'{site.kind} "{site.path}"' if site.path else f"{site.kind} of the model itself"


def _type_of(scene: Scene, sites: Sequence[Site], path: str) -> str:
    return sites[0].type if sites else qualified_type(scene.model.get_submodule(path))


def _operator_around(scene: Scene, path: str) -> Operator | None:
    """The operator that the module is, or is a part of, in a converted model."""
    modules = dict(scene.model.named_modules())
    names = path.split(".")
    owners = [modules.get(".".join(names[:end])) for end in range(1, len(names) + 1)]
    return next((owner for owner in owners if isinstance(owner, Operator)), None)


def _unseen(scene: Scene, path: str, sites: Sequence[Site]) -> Iterator[str]:
    yield from scene.trace.unseen
    is_used = any(path in op.stack for op in scene.trace.ops) or any(not site.idle for site in sites)
    if not is_used:
        yield "it did not run on the example input, so nothing is known of what its forward does"
