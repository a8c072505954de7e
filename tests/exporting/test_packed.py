"""The packed folder: rounded weights to the bit, everything else as asked for, and words where that cannot be."""

import copy
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from reparam.checkpoint.load import load
from reparam.checkpoint.packing import pack_tensors
from reparam.checkpoint.save import save
from reparam.errors import CheckpointError, ExportError
from reparam.exporting.base import Exported, parse_export_options
from reparam.exporting.packed import PackedFormat
from reparam.models.build import build_model, build_spec
from reparam.ops.adder_layer import AdderLayer
from reparam.ops.routed_layer import RoutedLayer
from reparam.ops.shift_layer import ShiftLayer
from tests.checkpoint.conftest import do_convert, make_pico

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(7))
Edit = Callable[[dict[str, torch.Tensor]], object]


def export(model: nn.Module, out: Path, **options: Any) -> Exported:
    chosen = parse_export_options(PackedFormat, options)
    return PackedFormat().write(model, out, chosen, extra={"note": 1})


def vit(recipe: str = "deepshift-q", seed: int = 0) -> nn.Module:
    """Converted, its biases and class token not zero as timm leaves them."""
    model = make_pico(seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return do_convert(model, recipe).eval()


@functools.cache
def pvt() -> nn.Module:
    """Its MLPs mix tokens, so each of their layers is routed."""
    sizes = {"depths": (1, 1), "embed_dims": (8, 16), "num_heads": (1, 2), "sr_ratios": (2, 1), "mlp_ratios": (2, 2)}
    torch.manual_seed(0)
    model = build_model(build_spec("pvt_v2_b0", num_classes=5, img_size=16, model_kwargs=sizes))
    return do_convert(model, "shiftaddvit").eval()


@functools.cache
def resnet(recipe: str) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(build_spec("cifar_resnet20", num_classes=5, img_size=16))
    return do_convert(model, recipe).eval()


def shift_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {path: module.weight for path, module in model.named_modules() if isinstance(module, ShiftLayer)}


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: vit("deepshift-q"), id="q without a zero code"),
        pytest.param(lambda: vit("deepshift-ps"), id="ps"),
        pytest.param(lambda: vit("shift-ptq-2term"), id="two terms"),
        pytest.param(lambda: vit("shiftaddvit"), id="binary attention and experts"),
        pytest.param(pvt, id="routed layers"),
        pytest.param(lambda: resnet("deepshift-q"), id="convolutions and batch norms"),
        pytest.param(lambda: resnet("shiftaddnet-fixed"), id="pruned shifts and adders"),
    ],
)
def test_shift_weights_come_back_to_the_bit_and_floats_kept_wide_give_the_same_logits(
    make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    model = make()
    export(model, tmp_path / "wide", floats="float32")
    export(model, tmp_path / "half")
    wide, half = load(tmp_path / "wide"), load(tmp_path / "half")
    wanted = shift_weights(model)
    assert wanted
    for loaded in (wide, half):
        found = shift_weights(loaded)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[path], wanted[path]) for path in wanted)
        assert {tensor.dtype for tensor in loaded.parameters()} == {torch.float32}
    with torch.no_grad():
        assert torch.equal(wide(IMAGES), model(IMAGES))
        assert half(IMAGES).isfinite().all()


def test_parameters_are_halves_and_buffers_and_integers_are_as_they_were(tmp_path: Path) -> None:
    model = copy.deepcopy(resnet("deepshift-q"))
    model.train()(IMAGES * 3e4)  # running variances beyond float16
    model.eval()
    export(model, tmp_path)
    loaded, buffers = load(tmp_path), dict(model.named_buffers())
    assert all(torch.equal(loaded.get_buffer(name), buffer) for name, buffer in buffers.items())
    assert max(float(buffer.max()) for buffer in buffers.values()) > 1e5
    head = model.get_submodule("fc").weight
    assert torch.equal(loaded.get_submodule("fc").weight, head.half().float())
    assert not torch.equal(loaded.get_submodule("fc").weight, head)


@pytest.mark.parametrize("factor", [1e6, 1e-9], ids=["overflows", "underflows"])
def test_what_a_half_cannot_hold_stays_a_float_and_is_said(factor: float, tmp_path: Path) -> None:
    model = vit()
    with torch.no_grad():
        model.head.weight.mul_(factor)
    exported = export(model, tmp_path)
    assert torch.equal(load(tmp_path).head.weight, model.head.weight)
    (note,) = exported.notes
    assert note == "left as they are, because float16 cannot hold their values: head.weight"


@pytest.mark.parametrize(("experts", "bound"), [("int8", 0.5 / 127), ("bf16", 2**-8), ("float16", 2**-11)])
@pytest.mark.parametrize(
    ("make", "is_routed"), [(lambda: vit("shiftaddvit"), False), (pvt, True)], ids=["whole MLPs", "routed layers"]
)
def test_multiply_experts_take_the_type_of_their_own(
    make: Callable[[], nn.Module], is_routed: bool, experts: str, bound: float, tmp_path: Path
) -> None:
    model = make()
    assert any(isinstance(module, RoutedLayer) for module in model.modules()) == is_routed
    exported = export(model, tmp_path, experts=experts)
    loaded = load(tmp_path)
    (part,) = [part for part in exported.parts if part.kind == "multiply experts"]
    names = [
        name for name in model.state_dict() if "multiply" in name and name.endswith("weight") and "norm" not in name
    ]
    assert (part.form, part.tensors) == (experts, len(names))
    for name in names:
        was, now = model.get_parameter(name).detach(), loaded.get_parameter(name).detach()
        largest = was.abs().amax(dim=tuple(range(1, was.ndim)), keepdim=True)
        assert bool(((was - now).abs() <= bound * largest * 1.001).all())
        assert not torch.equal(was, now)
    assert torch.equal(loaded.head.weight, model.head.weight.half().float())


def test_masks_of_pruned_weights_take_one_bit(tmp_path: Path) -> None:
    model = resnet("shiftaddnet-fixed")
    exported = export(model, tmp_path)
    kept = {name: tensor for name, tensor in model.state_dict().items() if name.endswith("kept")}
    (part,) = [part for part in exported.parts if part.form == "1 bit"]
    assert part.after == sum(math.ceil(tensor.numel() / 8) for tensor in kept.values()) < part.before / 7
    state = load(tmp_path).state_dict()
    assert kept
    assert all(torch.equal(state[name], tensor) for name, tensor in kept.items())


def test_sizes_by_kind_are_those_of_the_tensors_in_the_file(tmp_path: Path) -> None:
    model = resnet("shiftaddnet")
    exported = export(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert sum(part.after for part in exported.parts) == sum(tensor.nbytes for tensor in tensors.values())
    assert sum(part.before for part in exported.parts) == sum(t.nbytes for t in model.state_dict().values())
    assert exported.file_bytes == (tmp_path / "model.safetensors").stat().st_size
    adders = sum(m.weight.nbytes for m in model.modules() if isinstance(m, AdderLayer))
    (part,) = [part for part in exported.parts if part.kind == "adder weights"]
    assert (part.form, part.before, part.after) == ("float16", adders, adders // 2)


def test_a_deit_tiny_in_four_bits_takes_at_most_0_16_of_its_floats(tmp_path: Path) -> None:
    model = do_convert(build_model(build_spec("deit_tiny_patch16_224")), "deepshift-q", shape=(1, 3, 224, 224))
    for layer in model.modules():
        if isinstance(layer, ShiftLayer):
            layer.options = layer.options.model_copy(update={"bits": 4})
    for name, tensors in (("packed", pack_tensors(model, experts="float16").tensors), ("floats", model.state_dict())):
        save_file(tensors, tmp_path / name)
    assert (tmp_path / "packed").stat().st_size <= 0.16 * (tmp_path / "floats").stat().st_size


def test_the_notes_of_the_run_and_its_conversion_stay(tmp_path: Path) -> None:
    export(vit(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["reparam"]["extra"] == {"note": 1}
    assert config["reparam"]["packed"]["version"] == 1
    save(load(tmp_path), tmp_path / "again")
    assert torch.equal(load(tmp_path / "again")(IMAGES), load(tmp_path)(IMAGES))


def test_a_model_in_training_is_packed_as_it_answers_in_evaluation(tmp_path: Path) -> None:
    """Stochastic rounding draws in training only."""
    model = vit()
    for layer in model.modules():
        if isinstance(layer, ShiftLayer):
            layer.options = layer.options.model_copy(update={"rounding": "stochastic"})
    wanted = shift_weights(model)
    export(model.train(), tmp_path)
    assert all(module.training for module in model.modules())
    found = shift_weights(load(tmp_path))
    assert all(torch.equal(found[path], wanted[path]) for path in wanted)


def test_the_model_itself_is_not_changed(tmp_path: Path) -> None:
    model = vit()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export(model, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_dense_model_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"not converted, so it has no weights to pack\. Convert it first: reparam"):
        export(make_pico(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_an_older_packed_export_is_replaced(tmp_path: Path) -> None:
    place = PackedFormat().refuse_place
    place(tmp_path / "new")
    export(vit(), tmp_path / "packed")
    place(tmp_path / "packed")
    save(vit(), tmp_path / "run")
    with pytest.raises(CheckpointError, match="holds a model that is not packed"):
        place(tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(CheckpointError, match="the folder is not empty"):
        place(tmp_path / "mine")


CODES, INT8 = "blocks.0.attn.qkv.weight.codes", "blocks.0.mlp.multiply.fc1.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(
            lambda t: t.update({CODES: t[CODES][:-1].clone()}), "qkv.weight is damaged: wanted", id="truncated"
        ),
        pytest.param(lambda t: t[CODES].bitwise_xor_(1), "the weights are not those that", id="other codes"),
        pytest.param(lambda t: t.pop(CODES), f"there is no tensor {CODES}", id="missing"),
        pytest.param(
            lambda t: t.update({f"{INT8}.scale": torch.ones(3, 1)}),
            "its int8 values and scales do not fit",
            id="scales",
        ),
        pytest.param(lambda t: t.update(more=torch.ones(1)), "unexpected: more", id="unexpected"),
    ],
)
def test_a_damaged_file_is_refused(change: Edit, said: str, tmp_path: Path) -> None:
    export(vit("shiftaddvit"), tmp_path, experts="int8")
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        load(tmp_path)
    assert said in str(error.value)


def test_a_newer_version_asks_for_an_upgrade(tmp_path: Path) -> None:
    export(vit(), tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["reparam"]["packed"] = {"version": 2, "unheard": "of"}
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"packed format 2 is newer than 1.* Upgrade reparam"):
        load(tmp_path)
