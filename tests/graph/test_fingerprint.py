import torch
from torch import nn

from reparam.copying import meta_copy
from reparam.graph.fingerprint import fingerprint
from tests.pico import FULL, convert, token_net, vit


def test_the_fingerprint_depends_on_shapes_and_types_and_not_on_weights_or_modes() -> None:
    model = vit()
    same = vit()
    with torch.no_grad():
        same.head.weight.add_(1.0)
    assert fingerprint(same.train()) == fingerprint(model) == fingerprint(meta_copy(model))


def test_another_width_another_name_and_another_type_each_change_it() -> None:
    seen = {
        fingerprint(model)
        for model in (
            nn.Sequential(nn.Linear(4, 4)),
            nn.Sequential(nn.Linear(4, 5)),
            nn.Sequential(nn.Identity(), nn.Linear(4, 4)),
            nn.Sequential(nn.Bilinear(4, 4, 4)),
            nn.ModuleDict({"a": nn.Linear(4, 4)}),
            token_net("fused"),
            convert(vit(), FULL),
            vit(),
        )
    }
    assert len(seen) == 8
