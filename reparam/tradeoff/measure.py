"""Measures choices one by one: accuracy and divergence on the images, and what each adds to the counts."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from reparam.cost.count import count_operations, per_image
from reparam.cost.energy import bits_of
from reparam.cost.walk import images_in
from reparam.errors import ModelError
from reparam.ops.weight_words import weight_words
from reparam.trace.probe import ExampleInput, probe
from reparam.trace.record import Trace
from reparam.tradeoff.choices import Choice
from reparam.tradeoff.convert_one import convert_one, routing_of
from reparam.tradeoff.cuts import Cut, first_operation
from reparam.tradeoff.evaluations import Answers, Evaluations
from reparam.tradeoff.records import DenseFigures, SiteSensitivity
from reparam.train.evaluate import wilson_interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What one model costs: operations per image, functions without a formula, and its weights.

    `weight_bytes` is their size as a device would hold them: shift weights in their bits, the others in 32.
    """

    operations: Mapping[str, int]
    uncounted: Mapping[str, int]
    parameters: int
    weight_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """The dense model with all that its conversions are compared with."""

    model: nn.Module
    example_input: ExampleInput
    counts: Counts
    answers: Answers

    @property
    def top1(self) -> float:
        """In percent."""
        return top1(self.answers.logits, self.answers.labels)


def count(model: nn.Module, trace: Trace) -> Counts:
    """Counts a recorded run; experts at their balanced load."""
    totals = count_operations(model, trace)
    return Counts(
        operations=per_image(totals[0], images_in(trace)),
        uncounted=dict(sorted(totals[1].items())),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weight_bytes=sum(n * bits_of(dtype) for dtype, n in weight_words(model).items()) / 8,
    )


def in_order(choices: Sequence[Choice], trace: Trace) -> list[Choice]:
    """The choices by where their sites begin in a run."""
    return sorted(choices, key=lambda choice: (_position(choice, trace), choice.path))


def place(choices: Sequence[Choice], trace: Trace, evaluations: Evaluations) -> dict[str, Cut | None]:
    """Where the evaluation of each choice begins, by its key."""
    return {choice.key: evaluations.cut_before(_position(choice, trace)) for choice in choices}


def measure(
    dense: Dense, choices: Sequence[Choice], evaluations: Evaluations, cuts: Mapping[str, Cut | None]
) -> Iterator[SiteSensitivity]:
    """Yields what each choice does alone; they come in the order of execution."""
    for choice in choices:
        start = time.perf_counter()
        model = convert_one(dense.model, choice, dense.example_input)
        counts = count(model, probe(model, dense.example_input))
        cut = cuts[choice.key]
        logits = evaluations.logits(model.to(evaluations.device), cut)
        site = choice.step.site
        if not logits.isfinite().all():
            raise ModelError(
                f"{site.path}: with {choice.step.operator} there, logits are not finite, so nothing can be said of it; "
                'keep it dense by a rule (operator = "keep") and measure the others'
            )
        accuracy = top1(logits, dense.answers.labels)
        yield SiteSensitivity(
            path=site.path,
            kind=site.kind,
            operator=choice.step.operator,
            options=choice.step.options,
            recipe=choice.recipe,
            stage=choice.stage,
            top1=accuracy,
            top1_drop=dense.top1 - accuracy,
            kl=mean_kl(dense.answers.logits, logits),
            routing=routing_of(model),
            remark=choice.step.remark,
            takes_along=choice.takes_along,
            operations_change=_change(dense.counts.operations, counts.operations),
            uncounted_change=_change(dense.counts.uncounted, counts.uncounted),
            parameters_change=counts.parameters - dense.counts.parameters,
            weight_bytes_change=counts.weight_bytes - dense.counts.weight_bytes,
            began_at=None if cut is None else cut.path,
            seconds=round(time.perf_counter() - start, 2),
        )


def figures(dense: Dense) -> DenseFigures:
    """The dense model's own figures."""
    images = len(dense.answers.labels)
    return DenseFigures(
        images=images,
        top1=dense.top1,
        top1_interval=wilson_interval(round(dense.top1 * images / 100), images),
        operations=dict(dense.counts.operations),
        uncounted=dict(dense.counts.uncounted),
        parameters=dense.counts.parameters,
        weight_bytes=dense.counts.weight_bytes,
    )


def top1(logits: Tensor, labels: Tensor) -> float:
    """Percent of the rows of logits (N, K) whose largest is at the label (N,)."""
    return 100 * int((logits.argmax(dim=1) == labels).sum()) / len(labels)


def mean_kl(dense: Tensor, converted: Tensor) -> float:
    """Returns the mean of KL(dense || converted) in nats over the rows of two tensors of logits (N, K), in float64."""
    wanted, got = (F.log_softmax(logits.double(), dim=1) for logits in (dense, converted))
    return max(0.0, float(F.kl_div(got, wanted, reduction="batchmean", log_target=True)))


def _position(choice: Choice, trace: Trace) -> int:
    return min(first_operation(trace, step.site) for step in choice.steps)


def _change(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    changes = {key: after.get(key, 0) - before.get(key, 0) for key in sorted({*before, *after})}
    return {key: change for key, change in changes.items() if change}
