"""Where an operator may go: frozen descriptions of places in a model, with shapes but without tensors."""

from typing import Literal

from reparam.recipe.schema import Enclosure, Frozen, Kind

#: What an attention does to its scores or weights that a core of q, k and v alone cannot: a bias that depends on the
#: positions (or on the queries too), a constant mask, a mask or bias made from the model's input, a triangular mask,
#: layers across the heads, a function of the scores such as tanh, weights that are gated, or mixed along the tokens or
#: with those of another softmax.
Dropped = Literal["bias", "query_bias", "mask", "input_mask", "causal", "talking_heads", "score_function", "mixture"]


class TokenGrid(Frozen):
    """How a token axis maps to an image plane: `prefix` class or register tokens, then `height * width` tokens."""

    prefix: int
    height: int
    width: int


class AttentionForm(Frozen):
    """The core of one softmax attention, `softmax(scale * q k') v`, as found in the dataflow.

    `reads_only_prefix` says that the model's output reads class and register tokens of this attention and no others.
    `dropped` is what stands around the core beyond scaling and dropout, and would vanish with it. `key_heads` is given
    where keys and values have another number of heads than the queries (1: multi-query). `head_axis` is the heads'
    place among the leading axes in the model's own layout, None where there is one head without an axis; merged heads
    lie in one axis with the batch.

    Shapes: q (B, heads, query_tokens, head_dim), k (B, key_heads, key_tokens, head_dim), v (B, key_heads, key_tokens,
    value_dim).
    """

    heads: int
    head_dim: int
    value_dim: int
    query_tokens: int
    key_tokens: int
    key_heads: int | None = None
    scale: float | None = None
    is_fused: bool = False
    dropout: float = 0.0
    dropped: tuple[Dropped, ...] = ()
    head_axis: int | None = 1
    merged_heads: bool = False
    grid: TokenGrid | None = None
    grid_missing_because: str | None = None
    reads_only_prefix: bool = False


class MlpForm(Frozen):
    """What an MLP is made of: its layers over the channels, as paths inside it, in the order of their calls.

    `chain` lists the children in call order where each feeds the next and only linear layers hold parameters; it is
    empty otherwise. `mixes_tokens` says that what stands between the layers does not treat tokens one by one (a
    depthwise convolution, a normalisation over the image or the batch). `inline` says that the layers are children of
    the module at the site's path, which does more than this MLP.
    """

    linears: tuple[str, ...]
    chain: tuple[str, ...] = ()
    mixes_tokens: bool = False
    layout: Literal["channels_last", "channels_first"] = "channels_last"
    inline: bool = False


class Site(Frozen):
    """One place that a rule can pick.

    `refusal` is the finder's own reason why no operator can take the place; an operator may refuse for reasons of its
    own. `no_gain` is the finder's reason why it should not (it is linear already), `idle` says that it took no part in
    the run. `number` tells several of one kind in one forward apart, in the order of their calls.

    Of layers: `is_first` says that no other layer lies between the model's input and this one, `is_last` that none lies
    between this one and the model's output. `normalised` says that a normalisation reads its output, and nothing else.
    `is_called` is false where only its weight is read, by an operation of its owner.
    """

    path: str
    kind: Kind
    type: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    within: Enclosure | None = None
    calls: int = 1
    shared_with: tuple[str, ...] = ()
    number: int = 0
    refusal: str | None = None
    no_gain: str | None = None
    idle: bool = False
    is_first: bool = False
    is_last: bool = False
    is_called: bool = True
    normalised: bool = False
    attention: AttentionForm | None = None
    mlp: MlpForm | None = None
