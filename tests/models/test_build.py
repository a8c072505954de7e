"""Specs describe models without weights, and build them again."""

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from reparam.errors import ModelError
from reparam.models.build import build_model, build_spec
from reparam.models.spec import ModelSpec

FAMILIES = ["deit_tiny", "vit_small_patch14_reg4_dinov2", "resnet18", "pvt_v2_b0"]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_spec_holds_what_timm_says_of_the_model(name):
    spec = build_spec(name)
    cfg = timm.get_pretrained_cfg(spec.name)
    assert spec.source == "timm"
    assert spec.input_size == cfg.input_size
    assert spec.data["mean"] == list(cfg.mean)
    assert spec.data["crop_pct"] == cfg.crop_pct
    assert spec.pretrained_cfg["tag"] == cfg.tag


@pytest.mark.parametrize("name", FAMILIES)
def test_the_meta_build_has_the_names_and_shapes_of_timms_own(name):
    spec = build_spec(name)
    built, real = build_model(spec, device="meta"), timm.create_model(spec.name)
    assert {k: v.shape for k, v in built.state_dict().items()} == {k: v.shape for k, v in real.state_dict().items()}
    assert all(tensor.is_meta for tensor in built.state_dict().values())


def test_a_pico_model_is_built_and_runs(pico_spec):
    spec = pico_spec(in_chans=1)
    model = build_model(spec)
    assert spec.input_size == (1, 16, 16)
    assert len(spec.data["mean"]) == 1
    assert model(torch.zeros(2, *spec.input_size)).shape == (2, 5)


def test_a_spec_survives_json(pico_spec):
    spec = pico_spec()
    assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec


def test_two_builds_of_one_seed_are_equal(pico_spec):
    spec = pico_spec()
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build_model(spec).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_size_goes_to_the_builder_only_where_the_model_fixes_it():
    assert build_spec("deit_tiny", img_size=96).kwargs["img_size"] == [96, 96]
    flexible = build_spec("resnet18", img_size=96)
    assert "img_size" not in flexible.kwargs
    assert flexible.input_size == (3, 96, 96)


@pytest.mark.parametrize(
    ("name", "size", "advice"),
    [("deit_tiny", 100, "96 or 112"), ("deit_tiny", 8, "Choose --img-size 16"), ("swin_tiny", 30, "28 or 32")],
)
def test_a_size_that_leaves_pixels_over_names_the_next_ones(name, size, advice):
    with pytest.raises(ModelError, match="not a multiple") as caught:
        build_spec(name, img_size=size)
    assert advice in str(caught.value)


def test_a_size_that_the_forward_refuses_is_refused():
    with pytest.raises(ModelError, match="cannot take images of 3 x 16 x 16"):
        build_spec("inception_v4", img_size=16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"img_size": 0}, "--img-size: wanted at least 1, got 0"),
        ({"in_chans": 0}, "--in-chans: wanted at least 1, got 0"),
        ({"num_classes": -1}, "--num-classes: wanted at least 0, got -1"),
        ({"model_kwargs": {"depht": 3}}, "depht"),
        ({"model_kwargs": {"norm_layer": nn.LayerNorm}}, "cannot be written to JSON"),
    ],
    ids=["size", "channels", "classes", "unknown argument", "class as argument"],
)
def test_arguments_that_the_model_cannot_take_are_named(arguments, message):
    with pytest.raises(ModelError) as caught:
        build_spec("deit_tiny", **arguments)
    assert message in str(caught.value)


def test_a_class_of_the_users_own_cannot_be_built_by_name():
    with pytest.raises(ModelError, match="Make it yourself"):
        build_model(ModelSpec(source="module", name="zoo.Net"))


def timm_folder(folder: Path, spec: ModelSpec) -> nn.Module:
    model = build_model(spec)
    timm.models.save_for_hf(model, str(folder), safe_serialization=True)
    return model


def test_a_timm_folder_gives_the_spec_it_was_saved_with(tmp_path, pico_spec):
    saved = timm_folder(tmp_path, pico_spec())
    spec = build_spec(f"local-dir:{tmp_path}")
    assert (spec.source, spec.name, spec.input_size) == ("local-dir", "vit_tiny_patch16_224", (3, 16, 16))
    assert build_model(spec).state_dict().keys() == saved.state_dict().keys()


def test_flags_win_over_what_a_timm_folder_says(tmp_path, pico_spec):
    timm_folder(tmp_path, pico_spec())
    assert build_model(build_spec(f"local-dir:{tmp_path}", num_classes=9), device="meta").num_classes == 9


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(ModelError, match="Config file not found"):
        build_spec(f"local-dir:{tmp_path}")


def test_a_converted_folder_says_what_loads_it(tmp_path, pico_spec):
    timm_folder(tmp_path, pico_spec())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architecture": "reparam_vit_tiny_patch16_224"}))
    with pytest.raises(ModelError, match=r"Load it with reparam\.load"):
        build_spec(f"local-dir:{tmp_path}")


def test_a_hub_model_comes_with_the_hubs_arguments(tmp_path, pico_spec, monkeypatch):
    timm_folder(tmp_path, pico_spec())
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda _repo, name, **_: str(tmp_path / name))
    spec = build_spec("hf-hub:org/pico")
    assert (spec.source, spec.name, spec.input_size) == ("hf-hub", "vit_tiny_patch16_224", (3, 16, 16))
    assert spec.pretrained_cfg["hf_hub_id"] == "org/pico"


def test_a_hub_model_without_a_hub_says_so():
    with pytest.raises(ModelError, match="cannot be reached"):
        build_spec("hf-hub:org/never-downloaded")


def test_mean_and_std_are_averaged_once_for_another_number_of_channels(caplog: pytest.LogCaptureFixture) -> None:
    spec = build_spec("deit_tiny_patch16_224", in_chans=1)
    mean, std = sum((0.485, 0.456, 0.406)) / 3, sum((0.229, 0.224, 0.225)) / 3
    assert spec.data["mean"] == pytest.approx([mean])
    assert spec.data["std"] == pytest.approx([std])
    assert "does not match" not in caplog.text
