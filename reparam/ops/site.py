"""Where an operator may go: frozen descriptions of places in a model, with shapes but without tensors."""

from reparam.recipe.schema import Enclosure, Frozen, Kind


class TokenGrid(Frozen):
    """How a token axis maps to an image plane: `prefix` class or register tokens, then `height * width` tokens."""

    prefix: int
    height: int
    width: int


class AttentionForm(Frozen):
    """The core of one softmax attention, `softmax(scale * q k') v`, as found in the dataflow.

    `reads_only_prefix` says that the model's output reads class and register tokens of this attention and no others.

    Shapes: q (..., heads, query_tokens, head_dim), k (..., heads, key_tokens, head_dim), v (..., heads, key_tokens,
    value_dim).
    """

    heads: int
    head_dim: int
    value_dim: int
    query_tokens: int
    key_tokens: int
    scale: float
    is_fused: bool
    scale_divides: bool = False
    dropout: float = 0.0
    grid: TokenGrid | None = None
    grid_missing_because: str | None = None
    reads_only_prefix: bool = False


class MlpForm(Frozen):
    """A straight chain of children, `linear, activation, ..., linear`: their names in call order."""

    chain: tuple[str, ...]
    linears: tuple[str, ...]


class Site(Frozen):
    """One place that a rule can pick.

    `refusal` is the finder's own reason why no operator can take the place (a mask, no calls); an operator may refuse
    for reasons of its own.
    """

    path: str
    kind: Kind
    type: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    within: Enclosure | None = None
    calls: int = 1
    shared_with: tuple[str, ...] = ()
    refusal: str | None = None
    attention: AttentionForm | None = None
    mlp: MlpForm | None = None
