"""What every converted model must do, whoever wrote it: one law per name, to be run on each case."""

import copy
import functools
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import reparam
from reparam.api.convert import Conversion
from reparam.graph.records import Plan, Skip
from reparam.ops.base import Operator


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model, what it takes, and how many of its attentions and MLPs convert under `shiftaddvit`.

    `refused` holds words of each reason that may keep a site dense; with it the conversion is a partial one.
    `no_export` is why torch.export raises; `mixes_images` says that the model itself looks at several images at once.
    """

    make: Callable[[], nn.Module]
    attentions: int
    mlps: int
    size: int = 16
    refused: tuple[str, ...] = ()
    no_export: str | None = None
    mixes_images: bool = False

    @property
    def image(self) -> Tensor:
        return torch.randn(2, 3, self.size, self.size, generator=torch.Generator().manual_seed(0))


@functools.cache
def conversion_and_dense(case: Case) -> tuple[Conversion, nn.Module]:
    """The conversion of a model, and that model afterwards."""
    dense, partly = case.make(), bool(case.refused)
    return reparam.convert(dense, "shiftaddvit", example_input=case.image, allow_partial=partly), dense


def conversion_of(case: Case) -> Conversion:
    return conversion_and_dense(case)[0]


def converted(case: Case) -> nn.Module:
    """A copy of the converted model, to do with as a test likes."""
    return copy.deepcopy(conversion_of(case).model).eval()


def first_tensor(output: Any) -> Tensor:
    """Of whatever a model returns."""
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if isinstance(output, Mapping) else output))
    return output


def out_of(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return first_tensor(model(x))


def refusals(plan: Plan) -> list[Skip]:
    return [skip for stage in plan.stages for skip in stage.skips if skip.cause == "refused"]


def it_is_planned_as_expected(case: Case, folder: Path) -> None:
    conversion = conversion_of(case)
    kinds = [step.site.kind for step in conversion.plan.steps]
    assert (kinds.count("attention"), kinds.count("mlp")) == (case.attentions, case.mlps)
    reasons = [skip.reason for skip in refusals(conversion.plan)]
    for reason in reasons:
        assert any(words in reason for words in case.refused), reason
    for words in case.refused:
        assert any(words in reason for reason in reasons), words


def its_output_changes_and_keeps_its_shape(case: Case, folder: Path) -> None:
    dense, model = out_of(case.make(), case.image), out_of(converted(case), case.image)
    assert model.shape == dense.shape
    assert torch.isfinite(model).all()
    assert not torch.equal(model, dense)


def the_given_model_is_not_touched(case: Case, folder: Path) -> None:
    (_, given), expected = conversion_and_dense(case), case.make()
    assert list(given.state_dict()) == list(expected.state_dict())
    assert torch.equal(out_of(given, case.image), out_of(expected, case.image))


def it_learns(case: Case, folder: Path) -> None:
    """Finite gradients reach every operator, and two steps change the loss."""
    model, losses = converted(case).train(), []
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        torch.manual_seed(0)
        loss = first_tensor(model(case.image)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        losses.append(loss.item())
        optimiser.step()
    assert len(set(losses)) == 3
    cores = [m for m in model.modules() if isinstance(m, Operator) and m.kind == "attention"]
    assert len(cores) == case.attentions
    assert not [n for core in cores for n, p in core.named_parameters() if p.requires_grad and p.grad is None]


def it_is_saved_and_loaded_with_the_same_bits(case: Case, folder: Path) -> None:
    model = converted(case)
    reparam.save(model, folder / "run", example_input=case.image)
    loaded = reparam.load(folder / "run", base=case.make)
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert torch.equal(out_of(loaded, case.image), out_of(model, case.image))


def it_is_copied_and_pickled(case: Case, folder: Path) -> None:
    model = converted(case)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    pickled, expected = torch.load(buffer, weights_only=False), out_of(model, case.image)
    assert torch.equal(out_of(pickled, case.image), expected)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    assert torch.equal(out_of(twin, case.image), expected)


def no_softmax_is_left_in_it(case: Case, folder: Path) -> None:
    """Of the operations that run; the routers of the experts have a softmax of their own."""
    model, seen = converted(case), _Operations()
    for path, module in model.named_modules():
        if path.endswith("router"):
            module.register_forward_pre_hook(lambda *_: seen.pause())
            module.register_forward_hook(lambda *_: seen.go_on())
    with torch.no_grad(), seen:
        model(case.image)
    assert any("mm" in name or "convolution" in name for name in seen.names)
    assert not [name for name in seen.names if "softmax" in name or "scaled_dot_product" in name]


class _Operations(TorchDispatchMode):
    """Names of the operations that run, but for those in a pause."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self._pauses = 0

    def pause(self) -> None:
        self._pauses += 1

    def go_on(self) -> None:
        self._pauses -= 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._pauses:
            self.names.add(str(func))
        return func(*args, **kwargs or {})


def it_is_exported(case: Case, folder: Path) -> None:
    if case.no_export:
        with pytest.raises(Exception, match=case.no_export):
            torch.export.export(converted(case), (case.image,), strict=False)
        return
    program = torch.export.export(converted(case), (case.image,), strict=False)
    assert torch.allclose(out_of(program.module(), case.image), out_of(converted(case), case.image), atol=1e-5)


def it_takes_another_batch_size(case: Case, folder: Path) -> None:
    model, x = converted(case), case.image
    whole = out_of(model, torch.cat([x, x[:1]]))
    assert whole.shape[0] == 3
    if not case.mixes_images:
        torch.testing.assert_close(whole[:2], out_of(model, x), rtol=1e-4, atol=1e-5)


Law = Callable[[Case, Path], None]
LAWS: dict[str, Law] = {
    law.__name__: law
    for law in (
        it_is_planned_as_expected,
        its_output_changes_and_keeps_its_shape,
        the_given_model_is_not_touched,
        it_learns,
        it_takes_another_batch_size,
        it_is_saved_and_loaded_with_the_same_bits,
        it_is_copied_and_pickled,
        no_softmax_is_left_in_it,
        it_is_exported,
    )
}
_SLOW = {it_is_exported}
#: The laws to parametrise a test with.
NAMED_LAWS = [pytest.param(name, marks=[pytest.mark.slow] * (law in _SLOW), id=name) for name, law in LAWS.items()]
