"""Carries out a plan on a model, in place: swaps leaves and MLPs, opens attention owners, verifies each step."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import nn

from reparam.errors import RewriteError
from reparam.graph.attention_surgery import CoreOpener, OpenedCore, install_core, remove_core
from reparam.graph.fast_path import keep_layers, keep_padding
from reparam.graph.finders.base import qualified_type
from reparam.graph.fingerprint import fingerprint
from reparam.graph.inline import is_inline, layers_of
from reparam.graph.mlp_install import put_mlps
from reparam.graph.multihead import open_multihead, put_multihead
from reparam.graph.records import Plan, StagePlan, Step
from reparam.graph.verify import check_exact_core, check_operator, check_stage
from reparam.graph.verify_multihead import check_exact_multihead
from reparam.ops.base import OPERATORS, Operator, OperatorOptions, parse_options
from reparam.ops.dense import DenseAttention
from reparam.ops.site import Site
from reparam.trace.probe import ExampleInput, probe
from reparam.trace.record import ModuleCall, Trace

#: At most this many along each leading axis when a swapped module is checked.
_ROWS = 4


def rewrite(
    model: nn.Module,
    plan: Plan,
    example_input: ExampleInput,
    *,
    stage: int | None = None,
    verify: bool = True,
) -> nn.Module:
    """Applies a plan (one stage of it, or all) to `model` in place and returns it.

    Args:
        model: the dense model that the plan was made for, or for stage i the model after stage i - 1.
        plan: what to do.
        example_input: makes the calls whose forwards are converted; only shapes and dtypes matter.
        stage: which stage to apply; all when None.
        verify: prove each attention core exact before replacing it, and check each operator on random inputs.
    Raises:
        RewriteError: the plan is another model's, or a step is not what the plan promised; the model is then as it was.
    """
    chosen = _chosen_stages(model, plan, stage)
    with ExitStack() as undo:
        trace = probe(model, example_input)
        for number, stage_plan in enumerate(chosen, start=1):
            _check_sites(model, stage_plan)
            _check_called(stage_plan, trace)
            _apply(model, stage_plan, trace, undo, opened={}, verify=verify)
            if verify or number < len(chosen):
                trace = probe(model, example_input)
            if verify:
                check_stage(model, stage_plan, trace)
        undo.pop_all()
    return model


def _chosen_stages(model: nn.Module, plan: Plan, stage: int | None) -> tuple[StagePlan, ...]:
    if stage is not None and not 0 <= stage < len(plan.stages):
        raise RewriteError(f"the plan has no stage {stage}; it has {len(plan.stages)}, counted from 0")
    if not stage and fingerprint(model) != plan.fingerprint:
        raise RewriteError(
            f"the plan was made for another model than this {type(model).__name__}: module tree or parameter shapes "
            "differ. Plan again with this model."
        )
    return plan.stages if stage is None else (plan.stages[stage],)


def _check_sites(model: nn.Module, stage: StagePlan) -> None:
    """A later stage has no fingerprint of its own: its sites must be there, as modules of the planned types."""
    types = {path: qualified_type(module) for path, module in model.named_modules()}
    strange = [step.site for step in stage.steps if types.get(step.site.path) != step.site.type]
    if strange:
        found = types.get(strange[0].path, "nothing")
        raise RewriteError(
            f'stage "{stage.name}" does not fit this {type(model).__name__}: at "{strange[0].path}" it wants '
            f"{strange[0].type} and finds {found}. Apply the stages before it first, and each stage once."
        )


def _check_called(stage: StagePlan, trace: Trace) -> None:
    """Owners are converted for their calls; a forward that reads values may leave out one that the plan saw."""
    called = {call.path for call in trace.calls}
    owners = [step.site.path for step in stage.steps if step.site.kind == "attention" or is_inline(step.site)]
    left_out = [path for path in owners if path not in called]
    if left_out:
        raise RewriteError(
            f'"{left_out[0]}": it was called when it was planned, and is not now: a forward took another branch. Pass '
            "the weights and the example input that the plan was made with."
        )


def apply_stage(model: nn.Module, stage: StagePlan, trace: Trace, *, opened: Mapping[str, OpenedCore]) -> None:
    """Applies the steps of one stage in place without verifying them, for planning.

    Args:
        model: a meta copy.
        stage: what to do.
        trace: a run of the model before it.
        opened: what `open_core` made of the attention owners, by path.
    """
    # Operators draw initial weights; a plan must leave the user's random numbers alone.
    with torch.random.fork_rng(devices=[]), ExitStack() as undo:
        _apply(model, stage, trace, undo, opened=opened, verify=False)
        undo.pop_all()


def _apply(
    model: nn.Module, stage: StagePlan, trace: Trace, undo: ExitStack, *, opened: Mapping[str, OpenedCore], verify: bool
) -> None:
    """Applies the steps of one stage and leaves in `undo` what takes them back."""
    kept = {name: id(p) for name, p in model.named_parameters()}
    swapped = [step.site.path for step in stage.steps if is_swapped(model.get_submodule(step.site.path), step)]
    proven: set[int] = set()
    opener = CoreOpener()
    for path, steps in attention_by_owner(stage.steps).items():
        calls = trace.calls_of(path)
        if isinstance(model.get_submodule(path), nn.MultiheadAttention):
            _put_multihead(model, steps[0], calls, undo, verify=verify)
            continue
        forms = {step.site.number: step.site.attention for step in steps if step.site.attention}
        ready = opened.get(path) or opener.open(model.get_submodule(path), calls, path, forms)
        _put_cores(model, steps, calls, ready, undo, verify=verify, proven=proven)
    for path, steps in _inline_by_owner(stage).items():
        swapped += _put_inline(model.get_submodule(path), steps, trace.calls_of(path), undo, verify=verify)
        keep_padding(model, model.get_submodule(path), undo)
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    for step in stage.steps:
        if step.site.kind != "attention" and not is_inline(step.site):
            aliases = names[model.get_submodule(step.site.path)]
            _swap_module(model, step, aliases, trace.calls_of(step.site.path), undo, verify=verify)
    _check_kept(model, swapped, kept)
    _freeze_orphans(model, stage.orphans, undo)


def attention_by_owner(steps: Sequence[Step]) -> dict[str, list[Step]]:
    """The steps that convert attention, by the path of the module whose forward holds it."""
    owners: dict[str, list[Step]] = {}
    for step in steps:
        if step.site.kind == "attention":
            owners.setdefault(step.site.path, []).append(step)
    return owners


def _inline_by_owner(stage: StagePlan) -> dict[str, list[Step]]:
    owners: dict[str, list[Step]] = {}
    for step in stage.steps:
        if is_inline(step.site):
            owners.setdefault(step.site.path, []).append(step)
    return owners


def _put_inline(
    owner: nn.Module, steps: Sequence[Step], calls: Sequence[ModuleCall], undo: ExitStack, *, verify: bool
) -> tuple[str, ...]:
    sites = {step.site.number: step.site for step in steps}
    make = {step.site.number: (OPERATORS.get(step.operator), _options(step)) for step in steps}
    return put_mlps(owner, sites, calls, undo, make=make, verify=verify)


def _options(step: Step) -> OperatorOptions:
    return parse_options(OPERATORS.get(step.operator), step.options, where=step.rule)


def _freeze_orphans(model: nn.Module, names: Sequence[str], undo: ExitStack) -> None:
    for name in names:
        parameter = model.get_parameter(name)
        undo.callback(parameter.requires_grad_, parameter.requires_grad)
        parameter.requires_grad_(False)


def _put_cores(
    model: nn.Module,
    steps: Sequence[Step],
    calls: Sequence[ModuleCall],
    opened: OpenedCore,
    undo: ExitStack,
    *,
    verify: bool,
    proven: set[int],
) -> None:
    path = steps[0].site.path
    owner = model.get_submodule(path)
    # Owners that are alike share what was opened, and a proof draws its own weights: one serves them all.
    if verify and id(opened) not in proven:
        check_exact_core(owner, calls, opened, path=path)
        proven.add(id(opened))
    reference = next((p for p in (*owner.parameters(), *model.parameters()) if p.is_floating_point()), torch.empty(0))
    cores = {step.site.number: _core(step).to(reference).train(owner.training) for step in steps}
    undo.callback(remove_core, owner, opened, type(owner))
    install_core(owner, cores, opened)
    if verify:
        for core in cores.values():
            check_operator(owner, core, [(call.args, call.kwargs) for call in calls], path=path)


def _put_multihead(model: nn.Module, step: Step, calls: Sequence[ModuleCall], undo: ExitStack, *, verify: bool) -> None:
    path = step.site.path
    dense = model.get_submodule(path)
    assert isinstance(dense, nn.MultiheadAttention)
    if verify:
        check_exact_multihead(dense, calls, path=path)
    core = _core(step).to(dense.out_proj.weight)
    opened = open_multihead(dense, calls, core)
    put_multihead(model, path, opened, undo)
    if verify:
        check_operator(opened, core, [(call.args, call.kwargs) for call in calls], path=path)


def _core(step: Step) -> Operator:
    assert step.site.attention is not None
    return OPERATORS.get(step.operator).from_dense(DenseAttention(step.site.attention), step.site, _options(step))


def _swap_module(
    model: nn.Module,
    step: Step,
    aliases: Sequence[str],
    calls: Sequence[ModuleCall],
    undo: ExitStack,
    *,
    verify: bool,
) -> None:
    path = step.site.path
    dense = model.get_submodule(path)
    if verify:
        _refuse_nonfinite(dense, step)
    replacement: Operator = OPERATORS.get(step.operator).from_dense(dense, step.site, _options(step))
    for alias in aliases:
        undo.callback(model.set_submodule, alias, dense)
        model.set_submodule(alias, replacement)
        keep_layers(model, alias, undo)
    if verify:
        if step.site.mlp is None or step.site.mlp.chain:
            inputs, outputs = _enough(step.site, step.site.input_shape), _enough(step.site, step.site.output_shape)
            check_operator(replacement, replacement, inputs, path=path, output_shape=outputs)
        else:
            made = [(call.args, call.kwargs) for call in calls[:1]]
            check_operator(replacement, replacement, made, path=path, output_shape=step.site.output_shape)


def _refuse_nonfinite(dense: nn.Module, step: Step) -> None:
    """A power of two is made of any bits, so what was no number would no longer show."""
    for name, parameter in dense.named_parameters():
        if bad := int((~parameter.isfinite()).sum()):
            raise RewriteError(
                f'"{step.site.path}": {bad} of the {parameter.numel()} values of its {name} are not finite, and '
                f"{step.operator} cannot start from them. Look where the weights come from: a damaged file, or a "
                "training that diverged."
            )


def _enough(site: Site, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Layers treat images, and linear ones rows, alike: a few prove as much as all, in less time and memory."""
    if site.kind == "conv2d":
        return (1, *shape[1:])
    return (*(min(size, _ROWS) for size in shape[:-1]), shape[-1])


def is_swapped(dense: nn.Module, step: Step) -> bool:
    """Whether a step puts another module in the place of `dense`; attention otherwise keeps its owner."""
    if step.site.kind != "attention":
        return not is_inline(step.site)
    return isinstance(dense, nn.MultiheadAttention)


def takes_along(model: nn.Module, step: Step, site: Site) -> bool:
    """Whether a step swaps a module around the site; other attention keeps its owner, so its parts stay free."""
    is_inside = site.path.startswith(f"{step.site.path}.")
    return site.path in layers_of(step.site) or (is_inside and is_swapped(model.get_submodule(step.site.path), step))


def _check_kept(model: nn.Module, swapped: Sequence[str], before: dict[str, int]) -> None:
    """Parameters outside swapped modules must be the same objects under the same names."""
    after = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    for name, identity in before.items():
        if not any(name.startswith(f"{path}.") for path in swapped) and after.get(name) != identity:
            fate = "another" if name in after else "gone"
            raise RewriteError(f'parameter "{name}" was to stay as it is and is {fate}')
