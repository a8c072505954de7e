"""Weights fit exactly or are refused by name; hub failures are one clear sentence."""

import hashlib

import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors.torch import load_file, save_file
from torch import nn

from reparam.errors import WeightsError
from reparam.models.build import build_model, build_spec
from reparam.models.empty import build_empty
from reparam.models.weights import given_weights, load_weights, weights_digest
from reparam.models.weights_file import read_safetensors


@pytest.fixture
def spec(pico_spec):
    return pico_spec()


@pytest.fixture
def donor(spec):
    torch.manual_seed(1)
    return build_model(spec)


@pytest.fixture
def file(tmp_path, donor):
    save_file(donor.state_dict(), tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


@pytest.fixture
def hub(monkeypatch, file):
    """A hub that has one file for every model, and notes who asked."""
    asked = []

    def download(repo_id, filename="config.json", **_):
        asked.append((repo_id, filename))
        return str(file)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    return asked


def equal(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("build", [build_model, build_empty])
def test_a_file_gives_its_weights(build, spec, donor, file):
    model = build(spec)
    record = load_weights(model, spec, str(file))
    assert equal(model, donor)
    assert (record.kind, record.source) == ("file", str(file))
    assert record.sha256 == weights_digest(donor.state_dict())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("build", [build_model, build_empty])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_floats_of_a_file_in_another_type_are_brought_into_the_models_own(build, spec, donor, file, dtype):
    kept = {name: tensor.to(dtype) for name, tensor in donor.state_dict().items()}
    save_file(kept, file)
    model = build(spec)
    load_weights(model, spec, str(file))
    found = model.state_dict()
    assert all(torch.equal(found[name], tensor.to(torch.float32)) for name, tensor in kept.items())
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}


def test_training_loaded_weights_does_not_write_to_their_file(spec, file):
    model = build_empty(spec)
    load_weights(model, spec, str(file))
    before = file.read_bytes()
    with torch.no_grad():
        model.head.weight.add_(1.0)
    assert file.read_bytes() == before


def broken(tensors, fault):
    if fault == "missing":
        del tensors["head.weight"], tensors["head.bias"]
    elif fault == "unexpected":
        tensors["heat.weight"] = torch.zeros(1)
    elif fault == "mis-shaped":
        tensors["head.weight"] = torch.zeros(1000, 16)
    elif fault == "type":
        tensors["head.bias"] = torch.zeros(5, dtype=torch.int32)
    else:
        for name in list(tensors):
            tensors[f"module.{name}"] = tensors.pop(name)
    return tensors


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", "2 missing: head.bias, head.weight"),
        ("unexpected", "1 unexpected: heat.weight"),
        ("mis-shaped", "1 mis-shaped: head.weight (wanted 5 x 16, got 1000 x 16)"),
        ("type", "1 mis-shaped: head.bias (wanted float32, got int32)"),
        ("prefixed", "20 missing: blocks.0.attn.proj.bias, blocks.0.attn.proj.weight, blocks.0.attn.qkv.bias"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_change_nothing(spec, file, fault, message):
    save_file(broken(load_file(file), fault), file)
    model = build_model(spec)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_weights(model, spec, str(file))
    assert message in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_only_the_first_five_misfits_are_listed(spec, file):
    save_file(broken(load_file(file), "prefixed"), file)
    with pytest.raises(WeightsError, match=r"fc1\.bias and 15 more; 20 unexpected: module\."):
        load_weights(build_empty(spec), spec, str(file))


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x02}q\x00.", b"\xff" * 64, None], ids=["empty", "pickle", "noise", "cut"]
)
def test_a_file_that_is_no_safetensors_is_refused(spec, file, content):
    file.write_bytes(file.read_bytes()[:-100] if content is None else content)
    with pytest.raises(WeightsError, match="not an intact safetensors file"):
        load_weights(build_empty(spec), spec, str(file))


def test_formats_that_can_run_code_are_refused(spec, donor, tmp_path):
    torch.save(donor.state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"wanted a \.safetensors file, got \.pth"):
        load_weights(build_empty(spec), spec, str(tmp_path / "w.pth"))


def test_a_missing_file_is_named(spec):
    with pytest.raises(WeightsError, match=r"absent\.safetensors: there is no such file"):
        load_weights(build_empty(spec), spec, "absent.safetensors")


@pytest.mark.parametrize("build", [build_model, build_empty])
def test_the_hub_gives_what_timm_gives(build, spec, donor, hub):
    model = build(spec)
    torch.manual_seed(0)  # the head is new: the stand-in is said to have 1000 classes
    record = load_weights(model, spec, "hub")
    assert equal(model, timm_pretrained(spec))
    assert (record.kind, record.source) == ("hub", spec.pretrained_cfg["hf_hub_id"])
    assert record.sha256 == weights_digest(model.state_dict())
    assert hub[0][0] == spec.pretrained_cfg["hf_hub_id"]


def timm_pretrained(spec):
    torch.manual_seed(0)
    return timm.create_model(spec.name, pretrained=True, pretrained_cfg=spec.pretrained_cfg, **spec.kwargs)


def test_the_hubs_head_is_dropped_when_the_classes_differ(pico_spec, donor, hub):
    spec = pico_spec(num_classes=3)
    model = build_empty(spec)
    load_weights(model, spec, "hub")
    assert model.head.weight.shape == (3, 16)
    assert torch.equal(model.blocks[0].attn.qkv.weight, donor.blocks[0].attn.qkv.weight)
    assert torch.equal(model.pos_embed, donor.pos_embed)


def refuse_connection(*_args, **_kwargs):
    raise ConnectionRefusedError("[Errno 111] Connection refused")


def not_in_cache(*_args, **_kwargs):
    raise LocalEntryNotFoundError("outgoing traffic has been disabled")


def offline(*_args, **_kwargs):
    raise OfflineModeIsEnabled("offline mode is enabled")


@pytest.mark.parametrize("fail", [refuse_connection, not_in_cache, offline])
def test_an_unreachable_hub_is_said_in_one_sentence_with_a_way_out(spec, fail, monkeypatch):
    monkeypatch.setattr("timm.models._hub.hf_hub_download", fail)
    with pytest.raises(WeightsError, match="cannot be reached") as caught:
        load_weights(build_empty(spec), spec, "hub")
    message = str(caught.value)
    assert spec.pretrained_cfg["hf_hub_id"] in message
    assert "--weights none" in message
    assert "--weights FILE.safetensors" in message
    assert "\n" not in message


def test_a_hub_file_that_is_broken_says_so(spec, file, hub):
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(WeightsError, match="SafetensorError"):
        load_weights(build_empty(spec), spec, "hub")


def test_a_model_without_pretrained_weights_says_so(spec):
    bare = {key: value for key, value in spec.pretrained_cfg.items() if key not in ("hf_hub_id", "url")}
    with pytest.raises(WeightsError, match="No pretrained weights exist"):
        load_weights(build_empty(spec), spec.model_copy(update={"pretrained_cfg": bare}), "hub")


def test_random_weights_fill_an_empty_model(spec):
    model = build_empty(spec)
    record = load_weights(model, spec, "none")
    assert (record.kind, record.source) == ("none", None)
    assert not any(tensor.is_meta for tensor in model.state_dict().values())


def test_random_weights_leave_a_built_model_as_it_is(spec, donor):
    before = weights_digest(donor.state_dict())
    assert load_weights(donor, spec, "none").sha256 == before


def test_a_module_without_data_has_no_given_weights(spec, donor):
    assert given_weights(donor).kind == "given"
    with pytest.raises(WeightsError, match="20 tensors have no data"):
        given_weights(build_empty(spec))


def test_the_digest_is_sha256_over_names_types_shapes_and_bytes():
    tensors = {"b": torch.tensor([1.5, -2.0]), "a": torch.tensor(3, dtype=torch.int64)}
    wanted = hashlib.sha256()
    for name in ("a", "b"):
        array = tensors[name].numpy()
        wanted.update(f"{name}\0{tensors[name].dtype}\0{array.shape}\0".encode() + array.tobytes())
    assert weights_digest(tensors) == wanted.hexdigest()


@pytest.mark.parametrize(
    "other",
    [{"b": torch.zeros(2)}, {"a": torch.zeros(2).double()}, {"a": torch.zeros(1, 2)}, {"a": torch.tensor([0.0, -0.0])}],
    ids=["name", "dtype", "shape", "sign of zero"],
)
def test_the_digest_sees_every_difference(other):
    assert weights_digest({"a": torch.zeros(2)}) != weights_digest(other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.bool, torch.float8_e5m2, torch.uint8], ids=str)
def test_the_digest_takes_any_type_and_layout(dtype):
    tensor = torch.ones(3, 4).to(dtype)
    assert weights_digest({"a": tensor.T}) == weights_digest({"a": tensor.T.contiguous()})
    assert weights_digest({"a": tensor[:0]})


def tied_net() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    return net


@pytest.mark.parametrize("dropped", ["0.weight", "1.weight", None])
def test_a_shared_tensor_may_stand_in_the_file_under_any_of_its_names(pico_spec, tmp_path, dropped):
    saved = {name: torch.randn(tensor.shape) for name, tensor in tied_net().state_dict().items()}
    saved["1.weight"] = saved["0.weight"].clone()
    if dropped:
        del saved[dropped]
    save_file(saved, tmp_path / "w.safetensors")
    net = tied_net()
    load_weights(net, pico_spec(), str(tmp_path / "w.safetensors"))
    assert net[1].weight is net[0].weight
    assert torch.equal(net[0].weight, next(saved[name] for name in ("0.weight", "1.weight") if name in saved))


def test_a_shared_tensor_with_two_values_in_the_file_is_refused(pico_spec, tmp_path):
    net = tied_net()
    save_file(
        {n: torch.full(t.shape, float(i)) for i, (n, t) in enumerate(net.state_dict().items())},
        tmp_path / "w.safetensors",
    )
    with pytest.raises(WeightsError, match="one tensor in the model, but differ"):
        load_weights(net, pico_spec(), str(tmp_path / "w.safetensors"))


def make_file(tmp_path):
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef make():\n"
        "    net = nn.Linear(2, 1)\n"
        "    nn.init.constant_(net.weight, 5.0)\n"
        "    net.register_buffer('mask', torch.arange(3), persistent=False)\n"
        "    return net\n"
    )
    return build_spec(f"{tmp_path}/net.py:make")


@pytest.mark.parametrize(("weights", "kind"), [("hub", "factory"), ("none", "none")])
def test_a_file_gives_what_its_factory_made_buffers_outside_the_state_dict_included(tmp_path, weights, kind):
    spec = make_file(tmp_path)
    model = build_model(spec, device="meta")
    record = load_weights(model, spec, weights)
    assert record.kind == kind
    assert torch.equal(model.weight, torch.full((1, 2), 5.0))
    assert torch.equal(model.mask, torch.arange(3))


def test_a_timm_folder_gives_its_own_weights_without_a_hub(tmp_path, spec, donor):
    timm.models.save_for_hf(donor, str(tmp_path / "model"), safe_serialization=True)
    local = build_spec(f"local-dir:{tmp_path / 'model'}")
    model = build_empty(local)
    record = load_weights(model, local, "hub")
    assert equal(model, donor)
    assert (record.kind, record.source) == ("local-dir", str(tmp_path / "model"))


def test_a_hub_id_gives_the_weights_under_that_id(tmp_path, spec, donor, monkeypatch):
    timm.models.save_for_hf(donor, str(tmp_path), safe_serialization=True)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda repo_id, filename, **_: str(tmp_path / filename))
    remote = build_spec("hf-hub:org/pico")
    model = build_empty(remote)
    record = load_weights(model, remote, "hub")
    assert equal(model, donor)
    assert (record.kind, record.source) == ("hub", "org/pico")


def test_tensors_from_a_file_lie_where_torch_would_put_them(tmp_path):
    """Some libraries round a matrix product by the address of its operands; a reloaded model must give its own bits."""
    save_file({"a": torch.ones(3), "b": torch.ones(5), "c": torch.ones(7)}, tmp_path / "w.safetensors")
    tensors = read_safetensors(tmp_path / "w.safetensors", error=WeightsError, advice="")
    assert {name: tensor.data_ptr() % 64 for name, tensor in tensors.items()} == {"a": 0, "b": 0, "c": 0}
    assert all(tensor.eq(1).all() for tensor in tensors.values())
