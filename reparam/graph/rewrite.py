"""Carries out a plan on a model, in place: swaps leaves and MLPs, opens attention owners, verifies each step."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import nn

from reparam.errors import RewriteError
from reparam.graph.attention_surgery import OpenedCore, install_core, open_core, remove_core
from reparam.graph.finders.base import qualified_type
from reparam.graph.fingerprint import fingerprint
from reparam.graph.records import Plan, StagePlan, Step
from reparam.graph.verify import check_exact_core, check_operator, check_stage
from reparam.ops.base import OPERATORS, Operator, OperatorOptions, parse_options
from reparam.ops.dense import DenseAttention
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
    for step in stage.steps:
        options = parse_options(OPERATORS.get(step.operator), step.options, where=step.rule)
        if step.site.kind == "attention":
            calls = trace.calls_of(step.site.path)
            ready = opened.get(step.site.path) or open_core(model.get_submodule(step.site.path), calls, step.site.path)
            _put_core(model, step, options, calls, ready, undo, verify=verify)
        else:
            _swap_module(model, step, options, undo, verify=verify)
    _check_kept(model, stage.steps, kept)


def _put_core(
    model: nn.Module,
    step: Step,
    options: OperatorOptions,
    calls: Sequence[ModuleCall],
    opened: OpenedCore,
    undo: ExitStack,
    *,
    verify: bool,
) -> None:
    form, path = step.site.attention, step.site.path
    assert form is not None
    owner = model.get_submodule(path)
    if verify:
        check_exact_core(owner, calls, form, opened, path=path)
    core = OPERATORS.get(step.operator).from_dense(DenseAttention(form), step.site, options)
    reference = next((p for p in (*owner.parameters(), *model.parameters()) if p.is_floating_point()), torch.empty(0))
    undo.callback(remove_core, owner, opened, type(owner))
    install_core(owner, core.to(reference).train(owner.training), opened)
    if verify:
        check_operator(owner, core, [(call.args, call.kwargs) for call in calls], path=path)


def _swap_module(model: nn.Module, step: Step, options: OperatorOptions, undo: ExitStack, *, verify: bool) -> None:
    path = step.site.path
    dense = model.get_submodule(path)
    replacement: Operator = OPERATORS.get(step.operator).from_dense(dense, step.site, options)
    for alias in [name for name, module in model.named_modules(remove_duplicate=False) if module is dense]:
        undo.callback(model.set_submodule, alias, dense)
        model.set_submodule(alias, replacement)
    if verify:
        inputs, outputs = _few_rows(step.site.input_shape), _few_rows(step.site.output_shape)
        check_operator(replacement, replacement, inputs, path=path, output_shape=outputs)


def _few_rows(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Linear layers and MLPs treat rows alike, so a few prove as much as all, in less time and memory."""
    return (*(min(size, _ROWS) for size in shape[:-1]), shape[-1])


def _check_kept(model: nn.Module, steps: Iterable[Step], before: dict[str, int]) -> None:
    """Parameters outside swapped modules must be the same objects under the same names."""
    swapped = [step.site.path for step in steps if step.site.kind != "attention"]
    after = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    for name, identity in before.items():
        if not any(name.startswith(f"{path}.") for path in swapped) and after.get(name) != identity:
            fate = "another" if name in after else "gone"
            raise RewriteError(f'parameter "{name}" was to stay as it is and is {fate}')
