"""binary_linear_attention: softmax attention becomes Q(K'V) with Q and K binary, so both products only add.

    out[i] = a sum_j s(i, j) v[j] / sum_j s(i, j)  +  b mean_j v[j]  +  depthwise_conv(v)[i],
    s(i, j) = (q[i] . k[j] + c) / (D + c)

codes   q, k                       c    s
sign    sign(x - t) in {-1, +1}    D    (q.k + D) / 2D, the share of equal signs, in [0, 1]
bit     [x >= t] in {0, 1}         0    q.k / D, in [0, 1]
real    x / |x|                    1    (cos + 1) / 2, in [0, 1]; not binary, the first rung of the ablation ladder

The same s stands in the numerator and in the normaliser; written out, the sums are linear in the tokens:
    numerator = q (k' v) + c sum_j v[j],   normaliser = q (k' 1) + c N.
The threshold t is zero or learned per channel, never computed from the batch. The convolution is two-dimensional over
the token grid, skips prefix tokens, and starts at zero. a and b are 1 and 0, or learned per head: binary similarities
differ less than a softmax does, so the mixture stays close to the mean, and a > 1 with b = 1 - a moves it away.

Source: ShiftAddViT, arXiv:2306.06446; EcoFormer, arXiv:2209.09004 (the linear form). Released ShiftAddViT instead
divides by the L2 norm of the output (`normaliser = "l2"`: 0.5 v + q (k' v) / pi, over its norm), EcoFormer adds c v[i]
for c sum_j v[j] (`constant_term = "own"`), and the released convolution is 1-D over the token index
(`conv_layout = "sequence"`). Shapes: q (B, H, N, D), k (B, H, M, D), v (B, H, M, E), out (B, H, N, E).
"""

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.counts import OpCount
from reparam.ops.base import Example, Operator, OperatorOptions, operator
from reparam.ops.dense import DenseAttention
from reparam.ops.precision import compute_dtype
from reparam.ops.site import AttentionForm, Dropped, Site, TokenGrid
from reparam.ops.ste import binarize
from reparam.ops.token_conv import SequenceConv, TokenConv

_NORM_EPS = 1e-6
#: All that can stand around a core but a causal mask: without it, tokens would look ahead.
Droppable = Literal["bias", "input_mask", "mask", "mixture", "query_bias", "score_function", "talking_heads"]
_IN_WORDS: dict[Dropped, str] = {
    "bias": "a position bias",
    "causal": "a causal mask",
    "input_mask": "a mask that comes from the input",
    "mask": "a constant mask",
    "mixture": "scores or weights that are mixed along the tokens, with others, or gated",
    "query_bias": "a bias that depends on the queries",
    "score_function": "a function of the scores",
    "talking_heads": "layers across its heads",
}


class BinaryLinearAttentionOptions(OperatorOptions):
    """Options of `binary_linear_attention`; the defaults are ours."""

    codes: Literal["sign", "bit", "real"] = Field("sign", description="Alphabet of Q and K.")
    normaliser: Literal["sum", "l2"] = Field("sum", description="Divide by the similarities' sum or the output's norm.")
    threshold: Literal["zero", "learned"] = Field(
        "learned", description="Where a channel switches; learned starts at 0."
    )
    constant_term: Literal["sum", "own"] = Field(
        "sum", description="What the constant weighs: all values or the own one."
    )
    scales: Literal["one", "learned"] = Field(
        "one", description="Factors of each head's mixture and of its mean value: 1 and 0, or learned from there."
    )
    init: Literal["zero", "calibrated"] = Field(
        "zero",
        description="Thresholds and convolution at 0, or these and the scales fitted to the softmax attention's output "
        "on images.",
    )
    conv_kernel: Literal[0, 3, 5, 7, 9] = Field(3, description="Width of the depthwise convolution on V; 0 for none.")
    conv_layout: Literal["grid", "sequence"] = Field(
        "grid", description="2-D over the token grid or 1-D over the index."
    )
    conv_init: Literal["zero", "normal"] = Field("zero", description="Zero starts without the branch's influence.")
    conv_missing: Literal["leave_out", "refuse"] = Field(
        "leave_out",
        description="Without a token grid, or with fewer keys than queries: no convolution, or no operator.",
    )
    drop: tuple[Droppable, ...] = Field(
        ("bias", "mask", "query_bias", "score_function", "talking_heads"),
        description="What may be lost with the softmax: the convolution and fine-tuning are left to make up for it.",
    )
    ste_window: float = Field(1.0, gt=0, description="Half-width around the threshold in which gradients pass.")


@operator("binary_linear_attention", kind="attention", source="arXiv:2306.06446")
class BinaryLinearAttention(Operator):
    """softmax(q k') v -> q (k' v), q and k binary.  Before: N*M*(D+E) mul-adds.  After: (N+M)*D*E adds, no exp.

    State: `threshold_q`, `threshold_k` (H, 1, D) when learned; `token_conv.conv.weight`; `output_scale` a (H, 1, 1) for
    l2 or learned scales, `mean_scale` b (H, 1, 1) for these. Attention dropout has no counterpart and is dropped.
    """

    Options = BinaryLinearAttentionOptions
    no_decay = ("threshold_q", "threshold_k", "output_scale", "mean_scale")

    def __init__(self, form: AttentionForm, options: BinaryLinearAttentionOptions) -> None:
        super().__init__()
        self.form, self.options = form, options
        is_learned = options.threshold == "learned" and options.codes != "real"
        self.threshold_q = nn.Parameter(torch.zeros(form.heads, 1, form.head_dim)) if is_learned else None
        self.threshold_k = nn.Parameter(torch.zeros(self.key_heads, 1, form.head_dim)) if is_learned else None
        is_scaled = options.scales == "learned"
        has_output_scale = is_scaled or options.normaliser == "l2"
        self.output_scale = nn.Parameter(torch.ones(form.heads, 1, 1)) if has_output_scale else None
        self.mean_scale = nn.Parameter(torch.zeros(form.heads, 1, 1)) if is_scaled else None
        self.token_conv = self._build_conv()

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return self.form.key_heads or self.form.heads

    def _build_conv(self) -> nn.Module | None:
        form, options = self.form, self.options
        if not options.conv_kernel or self.no_conv_because(form, options):
            return None
        if options.conv_layout == "sequence":
            return SequenceConv(self.key_heads, options.conv_kernel, init=options.conv_init)
        assert form.grid is not None
        return TokenConv(self.key_heads * form.value_dim, options.conv_kernel, form.grid, init=options.conv_init)

    @staticmethod
    def no_conv_because(form: AttentionForm, options: BinaryLinearAttentionOptions) -> str | None:
        """Returns why the convolution would have no place or no effect, None when it has both."""
        is_grid = options.conv_layout == "grid"
        if form.query_tokens != form.key_tokens:
            return f"{form.query_tokens} queries attend to {form.key_tokens} keys"
        if is_grid and form.reads_only_prefix:
            return "only class tokens are read after it"
        return form.grid_missing_because or "no token grid" if is_grid and form.grid is None else None

    def encode(self, x: Tensor, threshold: Tensor | None) -> Tensor:
        """Returns the codes of q or k, same shape and dtype."""
        if self.options.codes == "real":
            return F.normalize(x, dim=-1)
        low = -1.0 if self.options.codes == "sign" else 0.0
        return binarize(x if threshold is None else x - threshold, low=low, window=self.options.ste_window)

    @property
    def constant(self) -> int:
        """c, the constant in the similarity."""
        return {"sign": self.form.head_dim, "bit": 0, "real": 1}[self.options.codes]

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attends q (B, H, N, D) to k (B, H, M, D) and returns (B, H, N, E)."""
        if compute_dtype(q) == torch.float16 and not q.is_meta:
            # Sums over tokens leave float16's range at about a thousand tokens.
            with torch.autocast(q.device.type, enabled=False):
                return self._attend(q.float(), k.float(), v.float()).half()
        return self._attend(q, k, v)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mixed = self.mix(q, k, v)
        if self.output_scale is not None:
            mixed = mixed * self.output_scale
        if self.mean_scale is not None:
            mixed = mixed + self.for_all_heads(v.mean(dim=-2, keepdim=True)) * self.mean_scale
        return mixed if self.token_conv is None else mixed + self.for_all_heads(self.token_conv(v))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The values v (B, K, M, E) weighted by similarity (B, H, N, E): the output without scales and convolution."""
        q, k = self.encode(q, self.threshold_q), self.encode(k, self.threshold_k)
        return self._mix_by_sum(q, k, v) if self.options.normaliser == "sum" else self._mix_by_norm(q, k, v)

    def for_all_heads(self, x: Tensor) -> Tensor:
        """Repeats what the heads of keys and values gave (B, K, ...) for the query heads that share them."""
        share = self.form.heads // self.key_heads
        return x if share == 1 or self.key_heads == 1 else x.repeat_interleave(share, dim=1)

    def _mix_by_sum(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        numerator = q @ self.for_all_heads(k.transpose(-2, -1) @ v)
        normaliser = q @ self.for_all_heads(k.sum(dim=-2).unsqueeze(-1))
        if self.constant:
            values = v.sum(dim=-2, keepdim=True) if self.options.constant_term == "sum" else v
            numerator = numerator + self.for_all_heads(self.constant * values)
            normaliser = normaliser + self.constant * k.shape[-2]
        # Sums of binary codes are whole numbers: 0 only where every similarity is 0, and so is the numerator.
        smallest = _NORM_EPS if self.options.codes == "real" else 1.0
        return numerator / normaliser.clamp_min(smallest)

    def _mix_by_norm(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mixed = 0.5 * self.for_all_heads(v) + (q @ self.for_all_heads(k.transpose(-2, -1) @ v)) / math.pi
        return F.normalize(mixed, dim=-1, eps=_NORM_EPS)

    @classmethod
    def refuse(cls, site: Site, dense: nn.Module, options: BinaryLinearAttentionOptions) -> str | None:
        """Takes attention over tokens without, or with permission to drop, what only a softmax can have."""
        form = site.attention
        assert form is not None
        for kind in form.dropped:
            if kind not in options.drop:
                remedy = "" if kind == "causal" else f'; add "{kind}" to drop'
                return f"it has {_IN_WORDS[kind]}, which binary linear attention cannot express{remedy}"
        if form.scale is not None and form.scale <= 0:
            return f"its scores are multiplied by {form.scale:g}, so that the least similar tokens weigh most"
        if form.query_tokens != form.key_tokens and (options.normaliser == "l2" or options.constant_term == "own"):
            return (
                f"{form.query_tokens} queries attend to {form.key_tokens} keys, so a query has no value of its own for "
                'the L2 normaliser or constant_term = "own"; set normaliser = "sum", constant_term = "sum"'
            )
        missing = cls.no_conv_because(form, options) if options.conv_kernel and not form.reads_only_prefix else None
        if missing and options.conv_missing == "refuse":
            return f'no place for the convolution ({missing}); set conv_kernel = 0 or conv_missing = "leave_out"'
        return None

    @classmethod
    def no_gain(cls, site: Site, options: BinaryLinearAttentionOptions) -> str | None:
        """One query costs as much as the linear form, or less."""
        if site.attention and site.attention.query_tokens == 1:
            return "there is one query, so the attention is already linear in the tokens"
        return None

    @classmethod
    def remark(cls, site: Site, options: BinaryLinearAttentionOptions) -> str | None:
        """Says what is dropped, and where the convolution is left out."""
        assert site.attention is not None
        dropped = [_IN_WORDS[kind] for kind in site.attention.dropped]
        missing = cls.no_conv_because(site.attention, options) if options.conv_kernel else None
        remarks = [f"drops {' and '.join(dropped)}"] if dropped else []
        return "; ".join([*remarks, *([f"no convolution: {missing}"] if missing else [])]) or None

    @classmethod
    def from_dense(cls, dense: nn.Module, site: Site, options: BinaryLinearAttentionOptions) -> "BinaryLinearAttention":
        """Starts at zero thresholds, scales of 1 and 0 and, by default, a zero convolution: no weights carry over."""
        assert site.attention is not None
        return cls(site.attention, options)

    def op_count(self, *input_shapes: tuple[int, ...]) -> OpCount:
        """The two products and their sums as additions, one division per output, the convolution as multiply-adds.

        The constant times the summed values is a multiplication per channel and head (a shift where D is a power of
        two).
        """
        batch, heads, queries, width = input_shapes[0]
        keys, value_width = input_shapes[1][-2], input_shapes[2][-1]
        of_keys = self._side_count(keys, width, value_width) + self._key_sums(keys, width, value_width)
        of_queries = self._side_count(queries, width, value_width) + self._mixing_count(queries, width, value_width)
        key_rows = batch * input_shapes[1][1]
        of_heads = of_queries + self._scale_count(queries, keys, value_width)
        return of_keys * key_rows + of_heads * (batch * heads) + self._conv_count(key_rows, keys, value_width)

    def _side_count(self, tokens: int, width: int, value_width: int) -> OpCount:
        """Coding the tokens of one side, and its product with or into the D x E state."""
        codes, products = tokens * width, tokens * width * value_width
        if self.options.codes == "real":
            unit = OpCount({("sqrt", "f32"): tokens, ("div", "f32"): codes})
            return OpCount.multiply_accumulate(products + codes) + unit
        return OpCount({("add", "f32"): products, ("cmp", "f32"): codes})

    def _key_sums(self, keys: int, width: int, value_width: int) -> OpCount:
        if self.options.normaliser == "l2":
            return OpCount()
        is_sum, has_constant = self.options.constant_term == "sum", bool(self.constant)
        sums = keys * width + has_constant * is_sum * keys * value_width
        scaled = has_constant * (value_width if is_sum else keys * value_width)
        return OpCount({("add", "f32"): sums, ("mul", "f32"): scaled})

    def _mixing_count(self, queries: int, width: int, value_width: int) -> OpCount:
        outputs = queries * value_width
        if self.options.normaliser == "l2":
            norm = {("mul", "f32"): 3 * outputs, ("add", "f32"): 2 * outputs, ("sqrt", "f32"): queries}
            return OpCount({**norm, ("div", "f32"): outputs})  # type: ignore[dict-item]
        sums = queries * width + bool(self.constant) * (outputs + queries)
        return OpCount({("add", "f32"): sums, ("div", "f32"): outputs})

    def _scale_count(self, queries: int, keys: int, value_width: int) -> OpCount:
        """One head's scales: of each output, and of the mean value, which is added to each output."""
        scaled = queries * value_width * (self.output_scale is not None)
        if self.mean_scale is None:
            return OpCount({("mul", "f32"): scaled})
        mean = {("mul", "f32"): scaled + 2 * value_width, ("add", "f32"): (queries + keys) * value_width}
        return OpCount(mean)  # type: ignore[arg-type]

    def _conv_count(self, rows: int, tokens: int, width: int) -> OpCount:
        if self.token_conv is None:
            return OpCount()
        grid, kernel = self.form.grid, self.options.conv_kernel
        is_grid = self.options.conv_layout == "grid" and grid is not None
        taps = kernel**2 if is_grid else kernel
        convolved = tokens - (grid.prefix if is_grid and grid else 0)
        return OpCount.multiply_accumulate(rows * convolved * width * taps) + OpCount(
            {("add", "f32"): rows * convolved * width}
        )

    @classmethod
    def examples(cls) -> list[Example]:
        """Alphabets, normalisers, both convolutions, shared keys; refused: what may not be dropped or left out."""
        heads, width = 2, 4
        grid = TokenGrid(prefix=1, height=2, width=3)

        def example(name: str, refusal: str | None = None, **fields: Any) -> Example:
            queries, keys = fields.pop("queries", 7), fields.pop("keys", 7)
            key_heads = fields.pop("key_heads", None)
            form = AttentionForm(
                heads=heads, key_heads=key_heads, head_dim=width, value_dim=width, query_tokens=queries,
                key_tokens=keys, scale=0.5, is_fused=True, dropped=fields.pop("dropped", ()),
                grid=fields.pop("grid", grid), grid_missing_because="the tokens come from no image",
            )  # fmt: skip
            shape = (2, heads, queries, width)
            site = Site(
                path="attn",
                kind="attention",
                type="user.Attention",
                input_shape=shape,
                output_shape=shape,
                attention=form,
            )
            return Example(
                name=name,
                site=site,
                dense=lambda: DenseAttention(form),
                inputs=lambda: (
                    torch.randn(shape),
                    *(torch.randn(2, key_heads or heads, keys, width) for _ in range(2)),
                ),
                options=BinaryLinearAttentionOptions(**fields),
                refusal=refusal,
            )

        return [
            example("sign"),
            example("bit", codes="bit"),
            example("real", codes="real"),
            example("zero-threshold", threshold="zero"),
            example("own-constant", constant_term="own"),
            example("no-conv", conv_kernel=0, grid=None),
            example("no-parameters", codes="real", conv_kernel=0, grid=None),
            example("cross", conv_kernel=0, keys=5),
            example(
                "released", codes="bit", normaliser="l2", conv_kernel=9, conv_layout="sequence", conv_init="normal"
            ),
            example("multi-query", key_heads=1),
            example("learned-scales", scales="learned", key_heads=1),
            example("no-place-for-the-conv", keys=5),
            example("no-grid", grid=None),
            example("dropped-bias", dropped=("bias",)),
            example(
                "fewer-keys-with-l2",
                keys=5,
                normaliser="l2",
                refusal="7 queries attend to 5 keys, so a query has no value of its own for the L2 normaliser or "
                'constant_term = "own"; set normaliser = "sum", constant_term = "sum"',
            ),
            example(
                "conv-wanted",
                grid=None,
                conv_missing="refuse",
                refusal="no place for the convolution (the tokens come from no image); set conv_kernel = 0 or "
                'conv_missing = "leave_out"',
            ),
            example(
                "bias-wanted",
                dropped=("bias",),
                drop=(),
                refusal='it has a position bias, which binary linear attention cannot express; add "bias" to drop',
            ),
            example(
                "causal",
                dropped=("causal",),
                refusal="it has a causal mask, which binary linear attention cannot express",
            ),
        ]
