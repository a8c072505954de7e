"""Functions as torch operators that compilers and exporters call and do not look into.

`torch.library.custom_op` would do the same, and takes 13 microseconds longer in each call, or 25 outside of
inference_mode (AMD Zen 3); a token's layer alone may take two.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

Operator = Callable[..., Tensor]


def opaque(fake: Operator) -> Callable[[Operator], Operator]:
    """Registers a function as the operator `reparam::` and its name, on any device; torch warns of a backward pass.

    Args:
        fake: what it returns for tensors without values, in shape, type, and strides.
    """

    def register(function: Operator) -> Operator:
        name = f"reparam::{function.__name__}"
        schema = torch.library.infer_schema(function, mutates_args=())
        torch.library.define(name, schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(name, "CompositeExplicitAutograd", function)
        torch.library.register_fake(name, fake)
        return cast(Operator, getattr(torch.ops.reparam, function.__name__).default)

    return register
