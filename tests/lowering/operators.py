"""Every operator's accepted examples, with branches that start at zero set to something that would be missed."""

import pytest
import torch
from torch import nn

from reparam.ops.base import OPERATORS, Example, Operator

ACCEPTED = [
    pytest.param(cls, example, id=f"{name}-{example.name}")
    for name, cls in OPERATORS
    for example in cls.examples()
    if example.refusal is None
]


def made(cls: type[Operator], example: Example) -> Operator:
    torch.manual_seed(0)
    operator = cls.from_dense(example.dense(), example.site, example.options).eval()
    for name, parameter in operator.named_parameters():
        if name.startswith(("threshold", "token_conv", "mean_scale", "output_scale")):
            nn.init.normal_(parameter, std=0.3)  # they start at zero, where a lost one would not show
    return operator
