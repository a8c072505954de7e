"""load(save(m)) == m, for dense and converted models, and what a loaded model remembers."""

import copy
import dataclasses
import json

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from reparam.checkpoint.load import load
from reparam.checkpoint.save import save
from reparam.errors import CheckpointError
from reparam.graph.provenance import Provenance, attach, provenance_of
from reparam.graph.rewrite import rewrite
from reparam.models.build import build_model, build_spec
from reparam.models.inputs import input_specs
from reparam.ops.base import Operator

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(7))


def state_equal(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return list(ours) == list(theirs) and all(
        ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in ours
    )


def test_a_converted_model_comes_back_as_it_was(tmp_path, pico, convert):
    model = convert(pico())
    save(model, tmp_path / "run")
    loaded = load(tmp_path / "run")
    assert state_equal(loaded, model)
    assert [type(m).__qualname__ for m in loaded.modules()] == [type(m).__qualname__ for m in model.modules()]
    assert any(isinstance(module, Operator) for module in loaded.modules())
    assert torch.equal(loaded(IMAGES), model.eval()(IMAGES))
    # What the input was is noted on saving, at the latest.
    noted = input_specs(torch.empty(provenance_of(model).plan.input_shape))
    assert provenance_of(loaded) == dataclasses.replace(provenance_of(model), inputs=noted)
    assert not any(module.training for module in loaded.modules())
    assert {n: p.requires_grad for n, p in loaded.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }


@settings(max_examples=8, deadline=None)
@given(
    depth=st.integers(1, 2),
    seed=st.integers(0, 2**31),
    num_classes=st.integers(1, 30),
    recipe=st.sampled_from([None, "none", "deepshift-q", "deepshift-ps", "shiftaddvit"]),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
)
def test_any_pico_vit_comes_back_as_it_was(tmp_path_factory, pico, convert, depth, seed, num_classes, recipe, scale):
    model = pico(depth=depth, seed=seed, num_classes=num_classes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1).mul_(scale)
    if recipe is not None:
        convert(model, recipe)
    folder = tmp_path_factory.mktemp("run")
    save(model, folder)
    loaded = load(folder)
    assert state_equal(loaded, model)
    assert torch.allclose(loaded(IMAGES), model.eval()(IMAGES), rtol=0, atol=0, equal_nan=True)


def test_saving_twice_writes_the_same_weights_and_record(tmp_path, pico, convert):
    model = convert(pico())
    save(model, tmp_path / "a")
    save(load(tmp_path / "a"), tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("recipe", [None, "none"])
def test_a_model_without_conversion_is_a_plain_timm_folder(tmp_path, pico, convert, recipe):
    model = pico() if recipe is None else convert(pico(), recipe)
    save(model, tmp_path / "run")
    by_timm = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True)
    assert state_equal(by_timm, model)
    assert torch.equal(by_timm.eval()(IMAGES), load(tmp_path / "run")(IMAGES))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["architecture"] == "vit_tiny_patch16_224"
    assert config["num_classes"] == 5


def test_timm_refuses_a_converted_folder_rather_than_load_it_as_dense(tmp_path, pico, convert):
    save(convert(pico(), "deepshift-q"), tmp_path / "run")
    with pytest.raises(RuntimeError, match="Unknown model"):
        timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True)


def test_the_folder_holds_the_two_files_and_what_they_promise(tmp_path, pico, convert):
    model = convert(pico())
    save(model, tmp_path / "run", extra={"epoch": 3})
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["config.json", "model.safetensors"]
    with safe_open(tmp_path / "run" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert len({file.stat().st_mode for file in (tmp_path / "run").iterdir()}) == 1
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    record = config["reparam"]
    assert config["num_features"] == 16
    assert config["pretrained_cfg"]["num_classes"] == 5
    assert record["format_version"] == 1
    assert record["recipe"]["stage"][0]["name"]
    assert record["plan"]["fingerprint"] == provenance_of(model).plan.fingerprint
    assert record["base"]["digest"] == provenance_of(model).weights.sha256
    assert record["golden"]["input_shape"] == [2, 3, 16, 16]
    assert [len(row) for row in record["golden"]["logits"]] == [5, 5]
    assert record["extra"] == {"epoch": 3}


def test_saving_leaves_the_model_and_the_random_state_as_they_were(tmp_path, pico, convert):
    model = convert(pico()).train()
    model.blocks[0].mlp.eval()
    modes = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    save(model, tmp_path / "run")
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_loaded_model_trains_and_can_be_saved_over_its_own_folder(tmp_path, pico, convert):
    save(convert(pico()), tmp_path / "run")
    model = load(tmp_path / "run").train()
    model(IMAGES).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    save(model, tmp_path / "run")
    assert state_equal(load(tmp_path / "run"), model)


def test_other_files_of_a_run_stay_when_its_model_is_saved_again(tmp_path, pico, convert):
    run = tmp_path / "run"
    save(pico(), run)
    save(pico(), run / "dense")
    (run / "summary.csv").write_text("epoch\n")
    save(convert(pico()), run)
    assert (run / "summary.csv").read_text() == "epoch\n"
    assert provenance_of(load(run)) is not None
    assert provenance_of(load(run / "dense")) is None


def test_a_classifier_that_was_reset_after_the_conversion_comes_back(tmp_path, pico, convert):
    model = convert(pico())
    model.reset_classifier(9)
    save(model, tmp_path / "run")
    loaded = load(tmp_path / "run")
    assert loaded.num_classes == 9
    assert state_equal(loaded, model)


def test_a_model_halfway_through_its_stages_comes_back_halfway(tmp_path, pico, convert):
    provenance = provenance_of(convert(pico()))
    assert len(provenance.plan.stages) > 1
    half = pico()
    rewrite(half, provenance.plan, torch.zeros(1, 3, 16, 16), stage=0, verify=False)
    attach(half, Provenance(spec=provenance.spec, plan=provenance.plan, weights=provenance.weights, stages=1))
    save(half, tmp_path / "run")
    loaded = load(tmp_path / "run")
    assert state_equal(loaded, half)
    assert provenance_of(loaded).plan == provenance.plan
    assert provenance_of(loaded).applied.stages == provenance.plan.stages[:1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_precisions_are_kept(tmp_path, pico, dtype):
    model = pico().to(dtype)
    save(model, tmp_path / "run")
    assert state_equal(load(tmp_path / "run"), model)


def test_wrappers_are_taken_off(tmp_path, pico, convert):
    model = convert(pico())
    wrapped = nn.DataParallel(model)
    assert provenance_of(wrapped) is provenance_of(model)
    save(wrapped, tmp_path / "run")
    assert state_equal(load(tmp_path / "run"), model)


def test_a_copy_of_a_converted_model_remembers_its_making(pico, convert):
    model = convert(pico())
    assert provenance_of(copy.deepcopy(model)) == provenance_of(model)
    assert provenance_of(pico()) is None


def test_a_custom_model_wants_its_class_and_gets_it(tmp_path, custom, convert):
    torch.manual_seed(0)
    dense = custom()
    model = convert(custom(), "deepshift-q")
    save(model, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"class .*Custom, which only you can build. Pass base="):
        load(tmp_path / "run")
    before = copy.deepcopy(dense.state_dict())
    for base in (dense, custom, lambda: custom()):
        loaded = load(tmp_path / "run", base=base)
        assert state_equal(loaded, model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())
    assert type(dense.head) is nn.Linear


def test_a_base_of_other_shape_or_kind_is_refused(tmp_path, custom, convert):
    save(convert(custom(), "deepshift-q"), tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"cannot be rebuilt: .*another model"):
        load(tmp_path / "run", base=custom(width=6))
    with pytest.raises(CheckpointError, match=r"base\(\) returned str"):
        load(tmp_path / "run", base=lambda: "net")


@pytest.mark.parametrize("output", ["dict", "tuple"])
def test_outputs_that_are_no_tensor_are_checked_by_their_first(tmp_path, custom, output):
    model = custom(output=output)
    save(model, tmp_path / "run", example_input=torch.zeros(1, 3, 8, 8))
    golden = json.loads((tmp_path / "run" / "config.json").read_text())["reparam"]["golden"]
    assert [len(row) for row in golden["logits"]] == [16, 16]
    assert state_equal(load(tmp_path / "run", base=lambda: custom(output=output)), model)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.unembed = nn.Linear(4, 11, bias=False)
        self.unembed.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        x = self.embed(tokens)
        return self.unembed(x if mask is None else x * mask[..., None]).mean(1)


def test_tied_parameters_are_stored_once_and_tied_again(tmp_path):
    model = Tokens()
    save(model, tmp_path / "run", example_input=torch.tensor([[10, 2, 3]]))
    with safe_open(tmp_path / "run" / "model.safetensors", framework="pt") as file:
        assert list(file.keys()) == ["embed.weight"]
    loaded = load(tmp_path / "run", base=Tokens)
    assert loaded.unembed.weight is loaded.embed.weight
    assert state_equal(loaded, model)


def test_a_timm_model_that_shares_modules_is_readable_by_timm_and_shares_them_again(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("coat_lite_tiny", img_size=32, embed_dims=[8] * 4, serial_depths=[2] * 4, num_classes=3)
    save(model, tmp_path / "run")
    loaded = load(tmp_path / "run")
    assert loaded.serial_blocks1[0].cpe.proj.weight is loaded.serial_blocks1[1].cpe.proj.weight
    assert state_equal(loaded, model)
    assert state_equal(timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True), model)


def test_parameters_that_were_untied_after_building_stay_untied(tmp_path):
    model = Tokens()
    model.unembed.weight = nn.Parameter(torch.randn(11, 4))
    save(model, tmp_path / "run", example_input=torch.tensor([[10, 2, 3]]))
    loaded = load(tmp_path / "run", base=Tokens)
    assert loaded.unembed.weight is not loaded.embed.weight
    assert state_equal(loaded, model)


def test_several_arguments_of_several_types_are_remembered(tmp_path):
    save(Tokens(), tmp_path / "run", example_input=(torch.tensor([[10, 2, 3]]), torch.ones(1, 3)))
    golden = json.loads((tmp_path / "run" / "config.json").read_text())["reparam"]["golden"]
    assert [spec["dtype"] for spec in golden["inputs"]] == ["int64", "float32"]
    assert golden["inputs"][0]["high"] == 11
    load(tmp_path / "run", base=Tokens)


def test_an_example_input_that_the_model_cannot_take_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="example_input: the model does not run"):
        save(Tokens(), tmp_path / "run", example_input=torch.zeros(1, 3))
    assert not (tmp_path / "run").exists()


def test_without_a_known_input_the_reason_is_written_instead_of_golden_values(tmp_path, custom, caplog):
    model = custom()
    save(model, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "config.json").read_text())["reparam"]
    assert record["golden"] is None
    assert record["golden_missing_because"] == "no input shape is known"
    assert state_equal(load(tmp_path / "run", base=custom), model)
    assert "no golden check, because no input shape is known" in caplog.text


def test_a_model_from_a_file_is_rebuilt_from_it(tmp_path, convert):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\ndef make():\n    return nn.Sequential(nn.Linear(4, 3))\n"
    )
    model = convert(build_model(build_spec(f"{tmp_path}/net.py:make")), "deepshift-q", shape=(1, 4))
    save(model, tmp_path / "run")
    assert state_equal(load(tmp_path / "run"), model)
    (tmp_path / "net.py").unlink()
    with pytest.raises(CheckpointError, match="there is no file"):
        load(tmp_path / "run")


def test_code_that_comes_with_the_checkpoint_is_not_run(tmp_path):
    run, net = tmp_path / "run", tmp_path / "net.py"
    net.write_text("from torch import nn\n\n\ndef make():\n    return nn.Linear(4, 3)\n")
    model = build_model(build_spec(f"{net}:make"))
    save(model, run, example_input=torch.zeros(1, 4))
    config = (run / "config.json").read_text().replace(str(net), str(run / "net.py"))
    (run / "config.json").write_text(config)
    (run / "net.py").write_text("raise SystemExit('ran')\n")
    with pytest.raises(CheckpointError, match="a file of its own"):
        load(run)
    assert state_equal(load(run, base=lambda: nn.Linear(4, 3)), model)


def test_a_converted_model_that_lost_its_record_is_not_saved(tmp_path, pico, convert):
    model = convert(pico())
    body = nn.Sequential(model.patch_embed, model.blocks)
    with pytest.raises(CheckpointError, match="no record of its conversion"):
        save(body, tmp_path / "run")


def test_a_foreign_folder_is_refused_before_the_model_runs(tmp_path, pico):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="not empty"):
        save(pico(), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]
