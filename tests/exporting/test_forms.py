"""The copy that a program is made from: every shift layer in integers, wherever it is registered."""

import torch
from torch import Tensor, nn

from reparam.exporting.forms import CodedLayer, Dialect, exportable_copy
from tests.pico import LINEAR, convert, recipe


class Twice(nn.Module):
    """One layer under two names, both of which are called."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = self.a

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x).relu())
        return out


def test_a_layer_that_has_two_names_is_one_layer_of_integers_under_both() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4)
    model = convert(Twice().eval(), recipe([LINEAR]), x).eval()
    copied, weights = exportable_copy(model, Dialect())
    assert isinstance(copied.a, CodedLayer)
    assert copied.b is copied.a
    assert [(weight.path, weight.form, weight.numbers) for weight in weights] == [("a", "int8", 16)]
    torch.testing.assert_close(copied(x), model(x))
