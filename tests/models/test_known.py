"""A module that exists is described by what built it, if that still holds."""

import timm
import torch
from torch import nn

from reparam.models.build import build_model, build_spec
from reparam.models.known import is_timm, module_spec, spec_of
from reparam.models.spec import stamp


def test_a_timm_model_is_described_so_that_it_can_be_built_again(pico_spec):
    model = build_model(pico_spec())
    spec = spec_of(model)
    rebuilt = build_model(spec, device="meta")
    assert spec.source == "timm"
    assert spec.input_size == (3, 16, 16)
    assert {k: v.shape for k, v in rebuilt.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_the_size_that_was_asked_for_is_known_where_timm_forgets_it():
    asked = build_spec("test_resnet", img_size=64)
    model = build_model(asked, device="meta")
    assert spec_of(model).input_size == (3, 64, 64)
    stamp(model, asked.model_copy(update={"input_size": None}))
    assert spec_of(model).input_size == (3, 160, 160)


def test_a_reset_head_is_part_of_the_description(pico_spec):
    model = build_model(pico_spec())
    model.reset_classifier(3)
    assert build_model(spec_of(model), device="meta").head.out_features == 3


def test_a_drop_path_rate_is_part_of_the_description():
    model = timm.create_model("resnet18", drop_path_rate=0.2)
    assert spec_of(model).kwargs["drop_path_rate"] == 0.2


def test_a_timm_model_that_was_changed_by_hand_is_the_users_own(pico_spec):
    model = build_model(pico_spec())
    model.head = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 5))
    assert spec_of(model) == module_spec(model)


def test_a_layer_of_the_same_shapes_but_another_type_is_a_change(pico_spec):
    class Scaled(nn.Linear):
        pass

    model = build_model(pico_spec())
    model.head = Scaled(16, 5)
    assert spec_of(model).source == "module"


def test_a_timm_model_built_with_a_class_as_argument_is_the_users_own():
    model = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2)
    assert spec_of(model).source == "timm"
    special = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2, norm_layer=nn.LayerNorm
    )
    assert spec_of(special).source == "module"


def test_a_module_of_a_file_is_described_by_the_file(tmp_path):
    (tmp_path / "net.py").write_text("from torch import nn\n\n\ndef make(width=4):\n    return nn.Linear(3, width)\n")
    spec = build_spec(f"{tmp_path}/net.py:make", model_kwargs={"width": 6})
    assert spec_of(build_model(spec)) == spec


def test_any_other_module_is_named_by_its_class():
    model = nn.Linear(2, 2)
    assert not is_timm(model)
    assert spec_of(model).name == "torch.nn.modules.linear.Linear"
    assert spec_of(torch.nn.ReLU()).source == "module"
