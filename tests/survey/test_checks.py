"""Each check passes on a sound conversion, and fails when the thing that it looks at is broken."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam.copying import meta_copy
from reparam.graph.records import Plan
from reparam.models.build import build_spec
from reparam.survey import checks
from reparam.survey.checks import CheckFailed, NotApplicable
from reparam.survey.examine import CHECKS, try_check
from reparam.survey.methods import methods
from reparam.survey.specimen import BATCH, Specimen, build_lively, example_of, moderate_spec, plan_of
from tests.pico import ATTENTION, FULL, LINEAR, recipe

PICO = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}


def specimen(folder: Path, wanted: Any = FULL, *, convert: bool = False, **changes: Any) -> Specimen:
    spec = build_spec("vit_tiny_patch16_224", num_classes=5, img_size=16, model_kwargs=PICO | changes)
    dense = build_lively(spec).eval()
    plan = plan_of(dense, wanted, example_of(spec))
    subject = Specimen(spec=spec, plan=plan, dense=dense, outline=meta_copy(dense), folder=folder)
    if convert:
        checks.conversion(subject)
    return subject


def converted(subject: Specimen) -> Any:
    assert subject.converted is not None
    return subject.converted


def test_every_check_passes_on_a_pico_vit(tmp_path: Path) -> None:
    subject = specimen(tmp_path)
    found = {name: try_check(name, check, subject) for name, check in CHECKS.items()}
    assert {name: (check.outcome, check.detail) for name, check in found.items()} == dict.fromkeys(CHECKS, ("ok", None))


def test_the_weights_are_seeded_and_none_is_constant() -> None:
    spec = build_spec("vit_tiny_patch16_224", num_classes=5, img_size=16, model_kwargs=PICO | {"init_values": 1e-5})
    first, second = build_lively(spec), build_lively(spec)
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert a.numel() == 1 or a.std() > 0, name


def test_an_exact_copy_that_is_off_by_one_bit_in_training_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Off(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.model(x)
            return torch.nextafter(out, out + 1) if self.training else out

    monkeypatch.setattr(checks, "exact_copy", lambda model, plan, x: Off(copy.deepcopy(model)))
    with pytest.raises(CheckFailed, match="batch 2 in training mode: the outputs differ, by up to"):
        checks.exact_round_trip(specimen(tmp_path))


def test_without_attention_to_convert_there_is_no_round_trip(tmp_path: Path) -> None:
    with pytest.raises(NotApplicable, match="no attention is converted"):
        checks.exact_round_trip(specimen(tmp_path, recipe([LINEAR])))


def test_identity_sees_a_plan_that_keeps_less_than_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "KEEP_ALL", recipe([LINEAR]))
    with pytest.raises(CheckFailed, match="a recipe of keep rules plans 5 steps"):
        checks.identity(specimen(tmp_path))


def test_identity_sees_a_rewrite_that_changes_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(model: Any, plan: Plan, x: Tensor, **_: Any) -> None:
        model.head.bias.data += 1

    monkeypatch.setattr(checks, "rewrite", spoil)
    with pytest.raises(CheckFailed, match="evaluation mode: the outputs differ, by up to 1"):
        checks.identity(specimen(tmp_path))


def test_forward_sees_another_shape_and_values_that_are_not_finite(tmp_path: Path) -> None:
    subject = specimen(tmp_path, convert=True)
    converted(subject).head = nn.Linear(16, 4)
    with pytest.raises(CheckFailed, match=r"batch 2: wanted shapes \[\(2, 5\)\], got \[\(2, 4\)\]"):
        checks.forward(subject)
    converted(subject).head = nn.Linear(16, 5)
    converted(subject).head.bias.data[0] = float("nan")
    with pytest.raises(CheckFailed, match="batch 2: the outputs are not finite"):
        checks.forward(subject)


def test_gradients_sees_a_new_parameter_without_a_gradient_and_one_that_is_not_finite(tmp_path: Path) -> None:
    subject = specimen(tmp_path, convert=True)
    converted(subject).orphan = nn.Parameter(torch.zeros(1))
    converted(subject).head.register_full_backward_pre_hook(lambda m, g: (g[0] * float("inf"),))
    with pytest.raises(CheckFailed, match=r"1 parameters get no gradient: orphan; 27 parameters .* not finite: .*qkv"):
        checks.gradients(subject)


def test_a_parameter_that_the_original_leaves_without_a_gradient_may_stay_so(tmp_path: Path) -> None:
    subject = specimen(tmp_path, convert=True)
    for model in (subject.outline, converted(subject)):
        model.orphan = nn.Parameter(torch.zeros(1, device="meta" if model is subject.outline else "cpu"))
    checks.gradients(subject)


def test_checkpointing_sees_other_outputs(tmp_path: Path) -> None:
    subject = specimen(tmp_path, convert=True)
    model = converted(subject)
    model.register_forward_hook(lambda m, args, out: out + m.grad_checkpointing)
    with pytest.raises(CheckFailed, match="training mode with checkpointing: the outputs differ"):
        checks.checkpointing(subject)
    assert not model.grad_checkpointing


def test_checkpointing_that_the_original_refuses_does_not_apply(tmp_path: Path) -> None:
    subject = specimen(tmp_path, convert=True)

    def refuse(enable: bool) -> None:
        raise AssertionError("gradient checkpointing not supported")

    subject.outline.set_grad_checkpointing = refuse
    with pytest.raises(NotApplicable, match="the original refuses it: gradient checkpointing not supported"):
        checks.checkpointing(subject)


def test_reload_sees_a_weight_that_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(folder: Path) -> nn.Module:
        model: Any = original(folder)
        model.head.bias.data.zero_()
        return model

    original = checks.load
    monkeypatch.setattr(checks, "load", forgetful)
    with pytest.raises(CheckFailed, match="evaluation mode: the outputs differ"):
        checks.save_and_reload(specimen(tmp_path, convert=True))


def test_state_keys_sees_a_lost_name_but_not_one_of_a_swapped_module(tmp_path: Path) -> None:
    subject = specimen(tmp_path, convert=True)
    assert "blocks.0.mlp.fc1.weight" not in converted(subject).state_dict()
    checks.state_keys(subject)
    del converted(subject).cls_token
    with pytest.raises(CheckFailed, match="1 tensors of the original are gone or reshaped: cls_token"):
        checks.state_keys(subject)


def test_methods_sees_one_that_is_gone_and_one_that_answers_otherwise(tmp_path: Path) -> None:
    subject = specimen(tmp_path, recipe([ATTENTION]), convert=True)
    assert methods(subject) is None

    class Spoilt(type(converted(subject))):  # type: ignore[misc]
        def no_weight_decay(self) -> set[str]:
            return {"other"}

        def get_classifier(self) -> nn.Module:
            raise NotImplementedError("gone")

    converted(subject).__class__ = Spoilt
    with pytest.raises(CheckFailed) as caught:
        methods(subject)
    assert "no_weight_decay gave ['cls_token', " in str(caught.value)
    assert "get_classifier raises NotImplementedError: gone" in str(caught.value)


def test_a_method_that_fails_on_the_original_too_is_noted_and_no_failure(tmp_path: Path) -> None:
    subject = specimen(tmp_path, convert=True)
    for model in (subject.outline, converted(subject)):
        model.group_matcher = None
    note = methods(subject)
    assert note is not None
    assert note.startswith("group_matcher raises TypeError")
    assert note.endswith("on the original")


def test_after_a_failed_conversion_the_later_checks_fail_and_say_why(tmp_path: Path) -> None:
    subject = specimen(tmp_path)
    for name in ("forward", "gradients", "checkpointing", "save and reload", "state keys", "methods"):
        outcome = try_check(name, CHECKS[name], subject)
        assert (outcome.outcome, outcome.detail) == (
            "failed",
            "there is no converted model, because the conversion failed",
        ), name


def test_any_exception_is_that_checks_failure() -> None:
    def crash(subject: Specimen) -> None:
        raise ZeroDivisionError("by zero")

    outcome = try_check("crash", crash, None)  # type: ignore[arg-type]  # it is not looked at
    assert (outcome.outcome, outcome.detail) == ("failed", "ZeroDivisionError: by zero")


def test_an_answer_leaves_statistics_and_mode_alone() -> None:
    norm = nn.BatchNorm1d(3).eval()
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    first = checks.answer(norm, torch.randn(BATCH, 3), training=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in norm.state_dict().items())
    assert not norm.training
    assert len(first) == 1


def test_large_images_become_moderate_where_the_architecture_takes_them_and_nowhere_else() -> None:
    assert build_spec("vit_base_patch16_384").input_size == (3, 384, 384)
    assert moderate_spec("vit_base_patch16_384").input_size == (3, 256, 256)
    assert moderate_spec("resnet18").input_size == (3, 224, 224)
    assert moderate_spec("test_vit").input_size == (3, 160, 160)
