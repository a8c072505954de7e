"""An observed attention shows the softmax attention's output with heads in front, and changes nothing."""

import pytest
import torch
from torch import Tensor, nn

from reparam.graph.observe import observe_attention_
from tests.pico import ATTENTION, DROPPED, SPELLINGS, convert, images, plan_for, recipe, token_net, vit

#: Whose core's output is what `proj` is given: heads beside tokens, in one batch.
PLAIN = [*(name for name in SPELLINGS if name != "windows"), "bias", "written bias", "mask", "talking heads"]


def seen(model: nn.Module, path: str) -> list[Tensor]:
    found: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].detach()))
    model(images())
    handle.remove()
    return found


@pytest.mark.parametrize("spelling", PLAIN)
def test_every_spelling_shows_what_its_projection_is_given_and_keeps_its_bits(spelling: str) -> None:
    assert spelling in SPELLINGS or spelling in DROPPED
    model = token_net(spelling)
    wanted = model(images())
    observe_attention_(model, plan_for(model, recipe([ATTENTION])).steps, images())
    assert torch.equal(model(images()), wanted)
    (shown,), (given,) = seen(model, "attn.core"), seen(model, "attn.proj")
    assert torch.equal(shown.transpose(1, 2).flatten(2), given)


def test_windows_are_shown_as_the_converted_models_core_gives_them() -> None:
    model = token_net("windows")
    converted = convert(token_net("windows"), recipe([ATTENTION]))
    shapes: list[torch.Size] = []
    converted.attn.core.register_forward_hook(lambda _, __, out: shapes.append(out.shape))
    converted(images())
    observe_attention_(model, plan_for(model, recipe([ATTENTION])).steps, images())
    (shown,), (given,) = seen(model, "attn.core"), seen(model, "attn.proj")
    assert [shown.shape] == shapes
    tokens = shown.unflatten(0, (2, 2)).transpose(1, 2).flatten(2, 3)
    assert torch.equal(tokens.transpose(1, 2).flatten(2), given)


def test_two_cores_of_one_forward_are_shown_apart() -> None:
    model = token_net("two cores")
    wanted = model(images())
    observe_attention_(model, plan_for(model, recipe([ATTENTION])).steps, images())
    assert torch.equal(model(images()), wanted)
    (first,), (second,), (given,) = (seen(model, f"attn.{name}") for name in ("core", "core_1", "proj"))
    torch.testing.assert_close((first - second).transpose(1, 2).flatten(2), given)


def test_a_multihead_attention_shows_its_own_too() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True).eval()
    x = torch.randn(2, 5, 8)
    wanted = model(x)
    observe_attention_(model, plan_for(model, recipe([ATTENTION]), x).steps, x)
    torch.testing.assert_close(model(x), wanted)
    outputs: list[Tensor] = []
    model.self_attn.core.register_forward_hook(lambda _, __, out: outputs.append(out))
    model(x)
    assert outputs[0].shape == (2, 2, 5, 4)


def test_layers_and_steps_of_other_kinds_are_passed_over() -> None:
    model, linear = vit(), {"match": {"kind": "linear"}, "operator": "shift_linear", "optional": True}
    before = [path for path, _ in model.named_modules()]
    observe_attention_(model, plan_for(model, recipe([linear])).steps, images())
    assert [path for path, _ in model.named_modules()] == before
