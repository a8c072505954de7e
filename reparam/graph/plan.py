"""Decides what becomes what: rules pick sites, operators accept or refuse with a reason, the answers are a Plan.

Nothing is changed and no weight is read. A later stage is planned on a meta copy, as the stage before leaves the model.
"""

from collections.abc import Callable, Collection, Sequence

from torch import Tensor, nn

from reparam.copying import meta_copy
from reparam.errors import PlanError, RewriteError
from reparam.graph.attention_surgery import OpenedCore
from reparam.graph.find import find_sites
from reparam.graph.finders.base import Scene
from reparam.graph.fingerprint import fingerprint
from reparam.graph.inline import is_inline
from reparam.graph.mlp_surgery import open_mlps
from reparam.graph.openings import Openings
from reparam.graph.plan_faults import raise_faults, refused_in, unused_in
from reparam.graph.records import IDLE, UNREAD, Plan, Skip, StagePlan, Step, Totals
from reparam.graph.rewrite import apply_stage, takes_along
from reparam.graph.selector import picks
from reparam.ops.base import OPERATORS, Operator, OperatorOptions, parse_options
from reparam.ops.dense import DenseAttention
from reparam.ops.site import Site
from reparam.recipe.schema import OPERATOR_KEEP, Recipe, Rule
from reparam.trace.probe import ExampleInput, as_arguments, probe
from reparam.trace.record import Trace
from reparam.trace.values import with_values

Count = Callable[[nn.Module, Trace], Totals]


def make_plan(
    model: nn.Module,
    recipe: Recipe,
    example_input: ExampleInput,
    *,
    count: Count,
    stages: int | None = None,
    allow_partial: bool = False,
) -> Plan:
    """Plans the first `stages` stages of a recipe (all by default) for a model; changes nothing.

    Args:
        model: the dense model; its weights are not read.
        recipe: the rules.
        example_input: a tensor or a tuple of arguments; only shapes and dtypes matter.
        count: totals of a model from the record of its run.
        stages: how many stages to plan.
        allow_partial: keep refused sites as they are instead of raising.
    Raises:
        PlanError: rules that match nothing and sites that were refused, all of them at once.
    """
    if stages is not None and not 0 < stages <= len(recipe.stages):
        raise PlanError(f'recipe "{recipe.name}" has {len(recipe.stages)} stages; wanted the first {stages} of them')
    trace = probe(model, example_input)
    # Where a forward reads values, a copy that keeps them takes the branches of the example input in every stage.
    planned = with_values(model) if trace.unseen else meta_copy(model)
    scene = Scene(planned, trace)
    before = count(planned, scene.trace)
    made: list[StagePlan] = []
    refused: list[str] = []
    unused: list[str] = []
    unread: set[str] = set()
    for number, stage in enumerate(recipe.stages[:stages]):
        opened: dict[str, OpenedCore] = {}
        decided = _told_unread(_plan_stage(scene, stage.rules, number, stage.name, opened), unread)
        made.append(decided)
        unused += unused_in(decided, stage.rules)
        refused += [] if allow_partial else refused_in(decided, stage.rules)
        apply_stage(planned, decided, scene.trace, opened=opened)
        after = Scene(planned, probe(planned, example_input, original=model))
        made[-1] = decided.model_copy(update={"orphans": _orphans(scene, after)})
        unread.update(made[-1].orphans)
        scene = after
    if not allow_partial and _is_idle(recipe, made):
        unused.append("none of its rules matches a site of the model, so it would change nothing")
    raise_faults(recipe, made[0], unused=unused, refused=refused)
    return Plan(
        recipe=recipe,
        fingerprint=fingerprint(model),
        input_shape=_first_shape(example_input),
        stages=tuple(made),
        before=before,
        after=count(planned, scene.trace),
        unseen=trace.unseen,
    )


def _plan_stage(
    scene: Scene, rules: Sequence[Rule], number: int, name: str, opened: dict[str, OpenedCore]
) -> StagePlan:
    """Decides every site of one stage; forwards of attention that were opened on the way go into `opened`."""
    steps: list[Step] = []
    skips: list[Skip] = []
    used: set[int] = set()
    openings = Openings(scene)
    for site in find_sites(scene):
        owner = next((step for step in steps if takes_along(scene.model, step, site)), None)
        if owner is not None:
            reason = f'a part of "{owner.site.path}", which becomes {owner.operator}'
            skips.append(Skip(site=site, cause="inside", reason=reason))
            continue
        position = next((i for i, rule in enumerate(rules) if _rule_picks(rule, site)), None)
        if position is None:
            skips.append(Skip(site=site, cause="no rule", reason="no rule picks it"))
            continue
        used.add(position)
        decision = _decide(scene, site, rules[position], label(number, position), openings)
        (steps if isinstance(decision, Step) else skips).append(decision)  # type: ignore[arg-type]
    opened |= openings.together(steps)
    unused = tuple(label(number, i) for i in range(len(rules)) if i not in used)
    return StagePlan(name=name, steps=tuple(steps), skips=tuple(skips), unused_rules=unused)


def label(stage: int, rule: int) -> str:
    """How messages and plans name a rule."""
    return f"stage {stage}, rule {rule}"


def _rule_picks(rule: Rule, site: Site) -> bool:
    takes_kind = rule.operator == OPERATOR_KEEP or OPERATORS.get(rule.operator).kind == site.kind
    return takes_kind and picks(rule.match, site)


def _decide(scene: Scene, site: Site, rule: Rule, where: str, openings: Openings) -> Step | Skip:
    if rule.operator == OPERATOR_KEEP:
        return Skip(site=site, cause="keep", reason=rule.reason or "the recipe keeps it", rule=where)
    if site.idle:
        return Skip(site=site, cause="idle", reason=IDLE, rule=where)
    cls = OPERATORS.get(rule.operator)
    options = parse_options(cls, rule.options, where=where)
    reason = site.refusal or (None if site.no_gain else _refuse(scene, cls, site, options, openings))
    if reason is not None:
        return Skip(site=site, cause="refused", reason=reason, rule=where)
    no_gain = site.no_gain or cls.no_gain(site, options)
    if no_gain is not None:
        return Skip(site=site, cause="no gain", reason=no_gain, rule=where)
    dumped = options.model_dump(mode="json")
    return Step(site=site, operator=rule.operator, options=dumped, rule=where, remark=cls.remark(site, options))


def _refuse(scene: Scene, cls: type[Operator], site: Site, options: OperatorOptions, openings: Openings) -> str | None:
    dense = DenseAttention(site.attention) if site.attention else scene.model.get_submodule(site.path)
    if cls.no_gain(site, options) is not None:
        return None
    return cls.refuse(site, dense, options) or _refuse_place(site) or _refuse_surgery(scene, site, openings)


def _refuse_place(site: Site) -> str | None:
    if site.kind != "attention" and not is_inline(site) and not site.path:
        return "it is the whole model; wrap it in a module so that it can be swapped"
    return None


def _refuse_surgery(scene: Scene, site: Site, openings: Openings) -> str | None:
    """A forward that cannot be opened is refused here, where it can be kept, and not in the rewrite."""
    if is_inline(site):
        return _refuse_move(scene, site)
    if site.attention is None or isinstance(scene.model.get_submodule(site.path), nn.MultiheadAttention):
        return None
    try:
        openings.try_(site)
    except RewriteError as error:
        return str(error).removeprefix(f'"{site.path}": ')
    return None


def _refuse_move(scene: Scene, site: Site) -> str | None:
    assert site.mlp is not None
    try:
        layers = {site.number: site.mlp.linears}
        open_mlps(scene.model.get_submodule(site.path), scene.trace.calls_of(site.path), site.path, layers)
    except RewriteError as error:
        return str(error).removeprefix(f'"{site.path}": ')
    return None


def _told_unread(stage: StagePlan, unread: Collection[str]) -> StagePlan:
    """The stage, its idle layers told apart: those of `unread` parameters ran until an earlier stage converted."""
    owners = {name.rpartition(".")[0] for name in unread}
    skips = (
        skip.model_copy(update={"reason": UNREAD}) if skip.cause == "idle" and skip.site.path in owners else skip
        for skip in stage.skips
    )
    return stage.model_copy(update={"skips": tuple(skips)})


def _orphans(before: Scene, after: Scene) -> tuple[str, ...]:
    """Parameters that the run read before a stage, and that are left unread after it."""
    unread = _names_read(before.trace) - _names_read(after.trace)
    return tuple(name for name, _ in after.model.named_parameters() if name in unread)


def _names_read(trace: Trace) -> set[str]:
    return {ref.name for op in trace.ops for ref in op.inputs if ref.name}


def _is_idle(recipe: Recipe, stages: Sequence[StagePlan]) -> bool:
    """Whether a recipe that wants to convert something found nothing that it could even keep."""
    wants = any(rule.operator != OPERATOR_KEEP for stage in recipe.stages[: len(stages)] for rule in stage.rules)
    used = [step.rule for stage in stages for step in stage.steps] + [s.rule for stage in stages for s in stage.skips]
    return wants and not any(used)


def _first_shape(example_input: ExampleInput) -> tuple[int, ...]:
    shapes = [tuple(leaf.shape) for leaf in as_arguments(example_input) if isinstance(leaf, Tensor)]
    if not shapes:
        raise PlanError("the example input holds no tensor; pass a tensor, or a tuple of arguments with one in it")
    return shapes[0]
