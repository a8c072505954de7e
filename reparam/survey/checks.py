"""What must hold of a converted architecture with weights; each check is one function and one line of the record.

A check returns nothing when all is well, or a note. It raises `CheckFailed` with what it saw, or `NotApplicable` with
why the question does not arise; any other exception is the check's failure too, in the exception's words.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from reparam.checkpoint.load import load
from reparam.checkpoint.save import write_checkpoint
from reparam.graph.exact_model import exact_copy
from reparam.graph.rewrite import rewrite
from reparam.graph.verify import seeded
from reparam.models.state import shortened
from reparam.recipe.schema import OPERATOR_KEEP, Recipe, Rule, Stage
from reparam.survey.specimen import (
    BATCH,
    OTHER_BATCH,
    Outputs,
    Specimen,
    answer,
    build_lively,
    in_mode,
    plan_of,
    tensors,
)

KEEP_ALL = Recipe(
    name="keep-all",
    summary="Keeps every site.",
    stages=(Stage(name="keep", rules=(Rule(operator=OPERATOR_KEEP, optional=True),)),),
)


_MOST_CHECKPOINTED = 60_000_000


class CheckFailed(Exception):
    """What a check saw that should not be."""


class NotApplicable(Exception):
    """Why a check does not apply to an architecture."""


def exact_round_trip(subject: Specimen) -> None:
    """With softmax cores in the rewritten forwards the model gives its own bits: eval, another batch, training."""
    if not any(step.site.kind == "attention" for step in subject.plan.steps):
        raise NotApplicable("no attention is converted")
    wanted = {(batch, training): subject.dense_answer(batch, training=training) for batch, training in _MODES}
    exact = exact_copy(subject.dense, subject.plan, subject.images(BATCH)).eval()
    for (batch, training), outputs in wanted.items():
        got = answer(exact, subject.images(batch), training=training)
        _same_bits(got, outputs, f"batch {batch} in {'training' if training else 'evaluation'} mode")


_MODES = ((BATCH, False), (OTHER_BATCH, False), (BATCH, True))


def identity(subject: Specimen) -> None:
    """A recipe of `keep` rules leaves every bit of the output as it is."""
    wanted = subject.dense_answer(BATCH)
    plan = plan_of(subject.dense, KEEP_ALL, subject.images(BATCH))
    if plan.steps:
        raise CheckFailed(f"a recipe of keep rules plans {len(plan.steps)} steps")
    rewrite(subject.dense, plan, subject.images(BATCH), verify=False)
    _same_bits(answer(subject.dense, subject.images(BATCH)), wanted, "evaluation mode")


def conversion(subject: Specimen) -> None:
    """The plan is carried out, and each step passes its own verification."""
    for batch in (BATCH, OTHER_BATCH):
        subject.dense_answer(batch)
    subject.convert_()


def forward(subject: Specimen) -> None:
    """Outputs have the dense model's shapes at two batch sizes, and are finite where the dense model's are."""
    for batch in (BATCH, OTHER_BATCH):
        got, wanted = answer(_converted(subject), subject.images(batch)), subject.dense_answer(batch)
        if [t.shape for t in got] != [t.shape for t in wanted]:
            raise CheckFailed(f"batch {batch}: wanted shapes {_shapes(wanted)}, got {_shapes(got)}")
        if _is_finite(wanted) and not _is_finite(got):
            raise CheckFailed(f"batch {batch}: the outputs are not finite; the dense model's are")


def gradients(subject: Specimen) -> None:
    """In training mode every trainable parameter gets a finite gradient if the dense model gives it one."""
    model = _converted(subject)
    subject.trained = train_step(model, subject.images(BATCH))
    missing, infinite = _gradient_faults_(model)
    if infinite:
        dense = build_lively(subject.spec)
        train_step(dense, subject.images(BATCH))
        infinite = sorted(set(infinite) - set(_gradient_faults_(dense)[1]))
    if missing:
        own = {name for name, parameter in subject.outline.named_parameters() if parameter.requires_grad}
        train_step(subject.outline, subject.images(BATCH).to("meta"))
        without = set(_gradient_faults_(subject.outline)[0])
        missing = [name for name in missing if name not in own or name not in without]
    faults = [(missing, "get no gradient"), (infinite, "get a gradient that is not finite")]
    if any(names for names, _ in faults):
        raise CheckFailed(
            "; ".join(f"{len(names)} parameters {what}: {shortened(names)}" for names, what in faults if names)
        )


def checkpointing(subject: Specimen) -> None:
    """With gradient checkpointing on, training gives the same outputs, and backward runs."""
    switch = getattr(subject.outline, "set_grad_checkpointing", None)
    if switch is None:
        raise NotApplicable("the architecture has no set_grad_checkpointing")
    if sum(parameter.numel() for parameter in subject.outline.parameters()) > _MOST_CHECKPOINTED:
        raise NotApplicable("it repeats a training step, which is left out above 60 M parameters for time")
    try:
        switch(True)
    except (AssertionError, NotImplementedError) as error:
        raise NotApplicable(f"the original refuses it: {error}") from None
    model = _converted(subject)
    wanted = subject.trained or train_step(model, subject.images(BATCH))
    model.set_grad_checkpointing(True)  # type: ignore[operator]  # a method of timm's models
    try:
        got = train_step(model, subject.images(BATCH))
    finally:
        model.set_grad_checkpointing(False)  # type: ignore[operator]
        model.zero_grad()
    _same_bits(got, wanted, "training mode with checkpointing")


def save_and_reload(subject: Specimen) -> None:
    """Saved and loaded again, the model gives the same bits."""
    model = _converted(subject)
    write_checkpoint(model, subject.folder)
    wanted = answer(model, subject.images(BATCH))
    _same_bits(answer(load(subject.folder), subject.images(BATCH)), wanted, "evaluation mode")


def state_keys(subject: Specimen) -> None:
    """Names and shapes of the dense model's state are kept, but for what lies in a module that was swapped."""
    before, after = subject.outline.state_dict(), _converted(subject).state_dict()
    kept = {name: tensor for name, tensor in before.items() if not name.startswith(swapped_paths(subject))}
    lost = [name for name, tensor in kept.items() if name not in after or after[name].shape != tensor.shape]
    if lost:
        raise CheckFailed(f"{len(lost)} tensors of the original are gone or reshaped: {shortened(lost)}")


def swapped_paths(subject: Specimen) -> tuple[str, ...]:
    """What the names of all tensors in swapped modules begin with, aliases included; an attention's owner is kept."""
    paths: dict[int, list[str]] = {}
    for path, module in subject.outline.named_modules(remove_duplicate=False):
        paths.setdefault(id(module), []).append(path)
    swapped = [step.site.path for step in subject.plan.steps if step.site.kind != "attention"]
    known = {path for aliases in paths.values() for path in aliases}
    own = [paths[id(subject.outline.get_submodule(path))] if path in known else [path] for path in swapped]
    return tuple(f"{path}." for aliases in own for path in aliases)


def _gradient_faults_(model: nn.Module) -> tuple[list[str], list[str]]:
    """Names of the trainable parameters without a gradient, and of those with one that is not finite; clears them."""
    trainable = [(name, parameter.grad) for name, parameter in model.named_parameters() if parameter.requires_grad]
    model.zero_grad()
    missing = [name for name, gradient in trainable if gradient is None]
    return missing, [name for name, gradient in trainable if gradient is not None and not _is_finite([gradient])]


def train_step(model: nn.Module, images: Tensor) -> Outputs:
    """The outputs in training mode under one seed, after a backward pass. Fused attention is exact only among these."""
    with in_mode(model, training=True), seeded():
        outputs = tensors(model(images))
        _loss(outputs).backward()
    return [t.detach() for t in outputs]


def _loss(outputs: Sequence[Tensor]) -> Tensor:
    return torch.stack([(t * torch.randn_like(t)).sum() for t in outputs if t.is_floating_point()]).sum()


def _converted(subject: Specimen) -> nn.Module:
    if subject.converted is None:
        raise CheckFailed("there is no converted model, because the conversion failed")
    return subject.converted


def _same_bits(got: Outputs, wanted: Outputs, where: str) -> None:
    if _shapes(got) != _shapes(wanted):
        raise CheckFailed(f"{where}: wanted shapes {_shapes(wanted)}, got {_shapes(got)}")
    if not all(map(_equal, got, wanted)):
        raise CheckFailed(f"{where}: the outputs differ, by up to {max(_differences(got, wanted)):.3g}")


def _equal(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _differences(got: Outputs, wanted: Outputs) -> Iterator[float]:
    for a, b in zip(got, wanted, strict=True):
        yield float((a.double() - b.double()).abs().max())


def _shapes(outputs: Outputs) -> list[tuple[int, ...]]:
    return [tuple(t.shape) for t in outputs]


def _is_finite(outputs: Sequence[Tensor]) -> bool:
    return all(t.device.type == "meta" or bool(torch.isfinite(t).all()) for t in outputs)
