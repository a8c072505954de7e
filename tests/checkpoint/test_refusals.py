"""Damaged, foreign, newer and edited folders are refused, each by a message that says what to do."""

import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from reparam.checkpoint.load import load
from reparam.checkpoint.save import save
from reparam.errors import CheckpointError
from reparam.graph.rewrite import rewrite


@pytest.fixture(scope="module")
def saved(tmp_path_factory, pico, convert):
    folder = tmp_path_factory.mktemp("saved") / "run"
    save(convert(pico()), folder)
    return folder


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def edit(run, change):
    config = json.loads((run / "config.json").read_text())
    change(config)
    (run / "config.json").write_text(json.dumps(config))


def edit_tensors(run, change):
    tensors = load_file(run / "model.safetensors")
    change(tensors)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, run / "model.safetensors")


def refused(run, **options):
    with pytest.raises(CheckpointError) as caught:
        load(run, **options)
    return str(caught.value)


def test_a_missing_folder_is_named(tmp_path):
    assert "there is no such folder" in refused(tmp_path / "absent")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "model.safetensors").touch()
    assert "model.safetensors: it is a file. Wanted a folder that" in refused(tmp_path / "model.safetensors")


def test_a_folder_without_config_says_what_was_wanted(tmp_path):
    assert "the folder has no config.json. Wanted a folder that reparam convert" in refused(tmp_path)


def test_a_folder_of_timms_own_says_how_to_use_it(run):
    edit(run, lambda config: config.pop("reparam"))
    assert f"local-dir:{run}" in refused(run)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", "\x00", "[" * 100_000], ids=repr)
def test_a_config_that_is_no_json_object_is_refused(run, text):
    (run / "config.json").write_text(text)
    assert "Save the model again" in refused(run)


def test_a_newer_format_asks_for_an_upgrade(run):
    edit(run, lambda config: config["reparam"].update(format_version=2, unheard_of=True))
    assert "format 2 is newer than 1" in refused(run)
    assert "Upgrade reparam" in refused(run)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda record: record.pop("base"), "reparam.base"),
        (lambda record: record["plan"].pop("stages"), "reparam.plan.stages"),
        (lambda record: record.update(suprise=1), "reparam.suprise"),
        (lambda record: record["base"]["spec"].update(source="pickle"), "reparam.base.spec.source"),
    ],
    ids=["missing", "missing deep", "unknown key", "unknown source"],
)
def test_a_damaged_record_is_refused_with_the_place(run, change, place):
    edit(run, lambda config: change(config["reparam"]))
    assert f'damaged at "{place}"' in refused(run)


def test_a_record_that_is_no_object_is_refused(run):
    edit(run, lambda config: config.update(reparam=[]))
    assert "is damaged at" in refused(run)


def test_an_operator_that_this_version_lacks_is_named(run):
    text = (run / "config.json").read_text().replace('"shift_linear"', '"shift_liner"')
    (run / "config.json").write_text(text)
    assert "shift_liner" in refused(run)


def test_a_model_that_this_timm_lacks_is_named(run):
    edit(run, lambda config: config["reparam"]["base"]["spec"].update(name="vit_of_tomorrow"))
    assert "vit_of_tomorrow" in refused(run)


def test_missing_weights_are_named(run):
    (run / "model.safetensors").unlink()
    assert "there is no such file" in refused(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("head.bias"), "1 missing: head.bias"),
        (lambda t: t.update(extra=torch.zeros(1)), "1 unexpected: extra"),
        (lambda t: t.update({"head.bias": torch.zeros(6)}), "1 mis-shaped: head.bias (wanted 5, got 6)"),
        (lambda t: t.update({"head.bias": torch.zeros(5).int()}), "head.bias (wanted float32, got int32)"),
        (lambda t: t["head.bias"].add_(1.0), "the weights are not those"),
    ],
    ids=["missing", "unexpected", "mis-shaped", "type", "value"],
)
def test_weights_that_are_not_those_saved_are_refused(run, change, message):
    edit_tensors(run, change)
    assert message in refused(run)


@pytest.mark.parametrize(
    ("tied", "message"),
    [({"head.bias": "absent"}, None), ({"absent": "head.bias"}, "unexpected: absent")],
    ids=["to nothing", "of nothing"],
)
def test_a_tie_that_the_model_does_not_have_is_refused_or_harmless(run, tied, message):
    edit(run, lambda config: config["reparam"].update(tied=tied))
    if message is None:
        load(run)
    else:
        assert message in refused(run)


def test_edited_weights_load_when_the_check_is_off(run):
    edit_tensors(run, lambda tensors: tensors["head.bias"].fill_(3.0))
    assert torch.equal(load(run, check=False).head.bias, torch.full((5,), 3.0))


def test_a_golden_mismatch_reports_the_largest_difference(run):
    def shift(config):
        config["reparam"]["golden"]["logits"][1][3] += 0.25

    edit(run, shift)
    assert "the largest difference is 0.25, allowed are 0.0001" in refused(run)
    load(run, check=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda golden: golden.update(seed=1), "the largest difference is"),
        (lambda golden: golden["logits"].pop(), "wanted (1, 5) golden values, got (2, 5)"),
        (lambda golden: golden["inputs"][0].update(shape=[2, 3, 8, 8]), "the golden check cannot run"),
    ],
    ids=["seed", "rows", "shape"],
)
def test_an_edited_golden_record_is_noticed(run, change, message):
    edit(run, lambda config: change(config["reparam"]["golden"]))
    assert message in refused(run)


def test_a_buffer_that_nothing_fills_is_named(run, monkeypatch):
    def leave_one_empty(model, *_args, **_kwargs):
        model.register_buffer("mask", torch.zeros(2, device="meta"), persistent=False)
        return model

    monkeypatch.setattr("reparam.checkpoint.load.rewrite", lambda *a, **k: leave_one_empty(rewrite(*a, **k)))
    assert "1 tensors of the model are neither in the file nor made by its code: mask" in refused(run)


def loads_identically_or_refuses(run, original):
    try:
        loaded = load(run)
    except CheckpointError:
        return
    wanted = load(original)
    assert all(torch.equal(tensor, wanted.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    x = torch.ones(2, 3, 16, 16)
    assert torch.allclose(loaded(x), wanted(x), atol=1e-3)


FUZZ = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(data=st.data(), name=st.sampled_from(["config.json", "model.safetensors"]))
def test_a_truncated_file_is_refused(saved, tmp_path, data, name):
    run = shutil.copytree(saved, tmp_path / "run", dirs_exist_ok=True)
    content = (run / name).read_bytes()
    length = data.draw(st.integers(0, len(content) - 2))
    (run / name).write_bytes(content[:length])
    with pytest.raises(CheckpointError):
        load(run)


@FUZZ
@given(data=st.data(), value=st.integers(0, 255))
def test_a_changed_byte_of_the_weights_is_refused_or_harmless(saved, tmp_path, data, value):
    run = shutil.copytree(saved, tmp_path / "run", dirs_exist_ok=True)
    content = bytearray((run / "model.safetensors").read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    content[data.draw(st.one_of(st.integers(0, header - 1), st.integers(0, len(content) - 1)))] = value
    (run / "model.safetensors").write_bytes(content)
    loads_identically_or_refuses(run, saved)


@FUZZ
@given(data=st.data(), value=st.integers(32, 126))
def test_a_changed_byte_of_the_config_is_refused_or_harmless(saved, tmp_path, data, value):
    run = shutil.copytree(saved, tmp_path / "run", dirs_exist_ok=True)
    content = bytearray((run / "config.json").read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = value
    (run / "config.json").write_bytes(content)
    loads_identically_or_refuses(run, saved)
