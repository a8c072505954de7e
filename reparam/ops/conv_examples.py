"""Small convolutions for the examples of operators that replace one."""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from reparam.ops.base import Example, OperatorOptions
from reparam.ops.conv_form import NOT_CALLED, ConvForm
from reparam.ops.site import Site

_SIDE = 8


def conv_site(conv: nn.Conv2d, *, side: int = _SIDE, **changes: Any) -> Site:
    """The site of a lone convolution on two square images, behind which a norm stands; `changes` are of its fields."""
    x = torch.empty(2, conv.in_channels, side, side, device="meta")
    form = ConvForm.of(conv)
    out = form.conv2d(form.prepared(x), conv.weight.to("meta"), None)
    fields = {"normalised": True, "type": f"{type(conv).__module__}.{type(conv).__qualname__}"} | changes
    return Site(path="conv", kind="conv2d", input_shape=tuple(x.shape), output_shape=tuple(out.shape), **fields)


def conv_example(
    name: str,
    *sizes: Any,
    options: OperatorOptions,
    refusal: str | None = None,
    conv: Mapping[str, Any] | None = None,
    cls: type[nn.Conv2d] = nn.Conv2d,
    **site: Any,
) -> Example:
    """An example of `cls(*sizes, **conv)`, by default a padded 3x3 one of 4 to 6 channels, at a site of such fields."""
    arguments = dict(conv or {}) if sizes else {"padding": 1, **(conv or {})}
    dense = functools.partial(cls, *(sizes or (4, 6, 3)), **arguments)
    found = conv_site(dense(), **site)
    return Example(
        name=name,
        site=found,
        dense=dense,
        inputs=lambda: (torch.randn(found.input_shape),),
        options=options,
        refusal=refusal,
    )


def refused_examples(options: OperatorOptions) -> list[Example]:
    """What every operator on convolutions refuses: a weight that is shared, and one that only its owner reads."""
    shared = 'its weight is shared with "b", which would stay dense'
    return [
        conv_example("shared", options=options, shared_with=("b",), refusal=shared),
        conv_example("not-called", options=options, is_called=False, refusal=NOT_CALLED),
    ]
