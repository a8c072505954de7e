"""Every registered operator against its own examples: the suite that a new operator gets for free."""

import copy

import pytest
import torch
from torch import Tensor, nn

from reparam.ops.base import OPERATORS, Example, Operator, parse_options

ALL = [pytest.param(cls, example, id=f"{name}-{example.name}") for name, cls in OPERATORS for example in cls.examples()]
ACCEPTED = [case for case in ALL if case.values[1].refusal is None]
REFUSED = [case for case in ALL if case.values[1].refusal is not None]
accepted = pytest.mark.parametrize(("cls", "example"), ACCEPTED)


def build(cls: type[Operator], example: Example) -> tuple[Operator, nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    dense = example.dense()
    return cls.from_dense(copy.deepcopy(dense), example.site, example.options), dense, example.inputs()


def test_every_operator_gives_examples_it_accepts_and_examples_it_refuses() -> None:
    for name, cls in OPERATORS:
        refusals = [example.refusal is not None for example in cls.examples()]
        assert set(refusals) == {True, False}, name


@pytest.mark.parametrize(("cls", "example"), REFUSED)
def test_a_refused_example_is_refused_in_the_stated_words(cls: type[Operator], example: Example) -> None:
    assert cls.refuse(example.site, example.dense(), example.options) == example.refusal


@accepted
def test_an_accepted_example_is_not_refused(cls: type[Operator], example: Example) -> None:
    assert cls.refuse(example.site, example.dense(), example.options) is None


@accepted
def test_the_output_has_the_shape_of_the_dense_output(cls: type[Operator], example: Example) -> None:
    operator, dense, inputs = build(cls, example)
    assert operator(*inputs).shape == dense(*inputs).shape


@accepted
def test_a_gradient_reaches_every_parameter_in_training(cls: type[Operator], example: Example) -> None:
    operator, _, inputs = build(cls, example)
    inputs = tuple(x.requires_grad_() for x in inputs)
    out = operator.train()(*inputs)
    (out * torch.randn_like(out)).sum().backward()
    trainable = [(n, p) for n, p in operator.named_parameters() if p.requires_grad]
    assert not [n for n, p in trainable if p.grad is None or not p.grad.abs().sum() > 0]


@accepted
def test_a_forward_and_backward_changes_no_parameter(cls: type[Operator], example: Example) -> None:
    operator, _, inputs = build(cls, example)
    before = {name: p.detach().clone() for name, p in operator.named_parameters()}
    operator.train()(*(x.requires_grad_() for x in inputs)).sum().backward()
    assert all(torch.equal(before[name], p) for name, p in operator.named_parameters())


@accepted
def test_a_strict_state_dict_round_trip_gives_the_same_output(cls: type[Operator], example: Example) -> None:
    operator, _, inputs = build(cls, example)
    operator.train()(*inputs)
    torch.manual_seed(1)
    fresh = cls.from_dense(example.dense(), example.site, example.options)
    fresh.load_state_dict(operator.state_dict(), strict=True)
    assert torch.equal(fresh.eval()(*inputs), operator.eval()(*inputs))


@accepted
def test_evaluation_is_deterministic_and_independent_of_the_rest_of_the_batch(
    cls: type[Operator], example: Example
) -> None:
    operator, _, inputs = build(cls, example)
    operator.eval()
    whole, first = operator(*inputs), operator(*(x[:1] for x in inputs))
    assert torch.equal(whole, operator(*inputs))
    torch.testing.assert_close(whole[:1], first, rtol=1e-5, atol=1e-5)


@accepted
def test_counts_are_positive_and_linear_in_the_batch(cls: type[Operator], example: Example) -> None:
    operator, _, inputs = build(cls, example)
    shapes = [tuple(x.shape) for x in inputs]
    doubled = [(2 * shape[0], *shape[1:]) for shape in shapes]
    assert operator.op_count(*doubled) == 2 * operator.op_count(*shapes)
    assert operator.op_count(*shapes).total("add") > 0


@accepted
def test_a_deep_copy_is_equal_and_independent(cls: type[Operator], example: Example) -> None:
    operator, _, inputs = build(cls, example)
    duplicate = copy.deepcopy(operator.eval())
    expected = operator(*inputs)
    with torch.no_grad():
        for parameter in operator.parameters():
            parameter.add_(1.0)
    assert torch.equal(duplicate(*inputs), expected)


@accepted
def test_it_exports_in_evaluation_mode_with_the_same_output(cls: type[Operator], example: Example) -> None:
    operator, _, inputs = build(cls, example)
    program = torch.export.export(operator.eval(), inputs, strict=False)
    torch.testing.assert_close(program.module()(*inputs), operator(*inputs), rtol=1e-5, atol=1e-5)


@accepted
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_it_trains_under_autocast_with_values_beyond_one(
    cls: type[Operator], example: Example, dtype: torch.dtype
) -> None:
    operator, _, inputs = build(cls, example)
    with torch.autocast("cpu", dtype):
        out = operator.train()(*((3 * x).requires_grad_() for x in inputs))
    out.float().square().mean().backward()
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(p.grad).all() for p in operator.parameters() if p.grad is not None)


@accepted
def test_a_half_precision_model_stays_in_its_precision(cls: type[Operator], example: Example) -> None:
    torch.manual_seed(0)
    operator = cls.from_dense(example.dense().bfloat16(), example.site, example.options).bfloat16()
    assert operator(*(x.bfloat16() for x in example.inputs())).dtype == torch.bfloat16


@accepted
def test_it_runs_on_the_meta_device_with_the_same_shape(cls: type[Operator], example: Example) -> None:
    operator, _, inputs = build(cls, example)
    expected = operator(*inputs).shape
    assert operator.to("meta")(*(x.to("meta") for x in inputs)).shape == expected


@accepted
def test_options_survive_a_round_trip_through_json(cls: type[Operator], example: Example) -> None:
    dumped = example.options.model_dump(mode="json")
    assert parse_options(cls, dumped, where="here") == example.options


@accepted
def test_no_decay_names_are_parameters_of_some_example(cls: type[Operator], example: Example) -> None:
    every = {n for e in cls.examples() if e.refusal is None for n, _ in build(cls, e)[0].named_parameters()}
    assert set(cls.no_decay) <= every
