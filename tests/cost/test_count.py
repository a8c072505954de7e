"""Counts against hand counts: products, norms, attention, what moves, what is free, and what is only listed."""

import math
from collections import Counter
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from reparam.cost.count import count_modules, count_operations, per_image
from reparam.cost.formulas import count_op
from reparam.cost.formulas.products import PRODUCTS
from reparam.counts import OpCount
from reparam.models.build import build_spec
from reparam.models.empty import build_empty
from reparam.trace.probe import probe
from tests.on_paper import DEIT_TINY, PICO, vit_operations
from tests.pico import ATTENTION, FULL, KEEP_HEAD, LINEAR, MLP, cnn, convert, images, recipe, token_net, vit


def counted(model: nn.Module, x: Tensor | None = None) -> tuple[OpCount, Counter[str]]:
    x = images() if x is None else x
    return count_operations(model, probe(model, x))


def arithmetic(operations: Mapping[str, int]) -> dict[str, int]:
    return {key: n for key, n in operations.items() if not key.startswith(("read.", "write."))}


def test_the_arithmetic_of_a_pico_vit_is_what_was_counted_on_paper() -> None:
    counts, uncounted = counted(vit())
    assert arithmetic(per_image(counts, 2)) == vit_operations(**PICO)
    assert not uncounted


def deit_tiny() -> nn.Module:
    return vit(img_size=224, patch_size=16, embed_dim=192, depth=12, num_heads=3, num_classes=1000).to("meta")


def test_the_arithmetic_of_deit_tiny_is_what_was_counted_on_paper_and_published() -> None:
    counts, uncounted = counted(deit_tiny(), torch.empty(1, 3, 224, 224, device="meta"))
    assert arithmetic(counts.as_dict()) == vit_operations(**DEIT_TINY)
    assert not uncounted
    assert counts.total("mul") / 1e9 == pytest.approx(1.3, abs=0.05)  # DeiT, table 1: 1.3 GFLOPs (multiply-accumulates)


def test_each_image_reads_each_weight_once() -> None:
    model = deit_tiny()
    counts, _ = counted(model, torch.empty(2, 3, 224, 224, device="meta"))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert per_image(counts, 2)["read.weight.f32"] == parameters


def named(name: str) -> Callable[[], nn.Module]:
    return lambda: build_empty(build_spec(name))


@pytest.mark.parametrize("make", [vit, cnn, deit_tiny, named("resnet18"), named("pvt_v2_b0")])
def test_products_are_those_that_torch_s_own_counter_finds(make: Callable[[], nn.Module]) -> None:
    model = make().to("meta").eval()
    size = 16 if sum(p.numel() for p in model.parameters()) < 50_000 else 224
    x = torch.empty(2, 3, size, size, device="meta")
    trace = probe(model, x)
    found = sum((count_op(op) or OpCount() for op in trace.ops if op.name in PRODUCTS), OpCount()).total("mul")
    # Its fused attention has no scale on the scores.
    attentions = [op for op in trace.ops if op.name == "scaled_dot_product_attention"]
    found -= sum(math.prod(op.inputs[0].shape[:-1]) * op.inputs[1].shape[-2] for op in attentions)
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert counter.get_total_flops() == 2 * found


def test_a_grouped_convolution_counts_the_channels_of_its_group() -> None:
    counts, _ = counted(cnn())
    first, grouped, head = 16 * 16 * 4 * 3 * 9, 14 * 14 * 4 * 1 * 9, 4 * 3
    normed, pooled = 16 * 16 * 4, 14 * 14 * 4
    macs = first + grouped + head
    assert arithmetic(per_image(counts, 2)) == {
        "mul.f32": macs + normed + 4,  # batch norm: a factor and a constant; the mean of each channel
        "add.f32": macs + normed + pooled + 16 * 16 * 4 + 3,
        "cmp.f32": normed,
    }


@pytest.mark.parametrize("spelling", ["permuted keys", "softmax module", "product modules", "fused"])
def test_fused_and_written_attention_count_the_same_products(spelling: str) -> None:
    counts, _ = counted(token_net(spelling))
    stem, projections, products, head = 16 * 8 * 48, 16 * 8 * 32, 2 * 16 * 16 * 8, 8 * 3
    scores, norm, pooled = 2 * 16 * 16, 3 * 16 * 8 + 2 * 16, 8
    scaled = scores if spelling == "fused" else 0
    assert counts.total("mul") == 2 * (stem + projections + products + head + norm + pooled + scaled)
    assert counts.total("exp") == 2 * scores


class Runs(nn.Module):
    """Runs one function on its input."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "multiplications", "additions"),
    [
        (lambda x: torch.einsum("bhnd,bhmd->bhnm", x, x), 2 * 3 * 4 * 4 * 5, 0),
        (lambda x: torch.einsum("bnhd,bmd->bhnm", x, x[:, :, 0]), 2 * 4 * 3 * 3 * 5, 0),
        (lambda x: torch.einsum("...nd,...md", x, x), 2 * 3 * 4 * 4 * 5, 0),
        (lambda x: torch.einsum("bhnd,bhnd->bhn", x, x), 2 * 3 * 4 * 5, 0),
        (lambda x: x @ x[:1, :1].mT, 2 * 3 * 4 * 4 * 5, 0),  # the second operand is spread over the batch
        (lambda x: torch.baddbmm(x[:, 0, :, :4], x[:, 0], x[:, 0].mT), 2 * 4 * 4 * 5, 2 * 4 * 4),
        (lambda x: torch.baddbmm(x[:, 0, :, :4], x[:, 0], x[:, 0].mT, beta=0), 2 * 4 * 4 * 5, 0),
    ],
)
def test_a_product_in_any_spelling_counts_its_pairs_of_elements(
    function: Callable[[Tensor], Tensor], multiplications: int, additions: int
) -> None:
    """Of x (2, 3, 4, 5); `additions` are those of an addend, beside one for each multiplication."""
    counts, uncounted = counted(Runs(function), torch.randn(2, 3, 4, 5))
    assert (counts.total("mul"), counts.total("add")) == (multiplications, multiplications + additions)
    assert not uncounted


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_multihead_attention_counts_its_projections_and_products(batch_first: bool, bias: bool) -> None:
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 2, bias=bias, kdim=6, vdim=5, batch_first=batch_first)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = x.split((8, 6, 5), -1)
            keys = (slice(None), slice(0, 3)) if batch_first else slice(0, 3)
            out: Tensor = self.attn(q, k[keys], v[keys])[0]
            return out

    counts, _ = counted(Cross(), torch.randn(2, 4, 19) if batch_first else torch.randn(4, 2, 19))
    queries, keys = 2 * 4, 2 * 3
    layers = queries * 8 * 8 + keys * 8 * 6 + keys * 8 * 5 + queries * 8 * 8
    products, scores = 2 * (2 * 4 * 3) * 8, 2 * (2 * 4 * 3)
    assert counts.total("mul") == layers + products + scores
    assert counts.total("add") == layers + products + 2 * scores + bias * (2 * queries * 8 + 2 * keys * 8)
    assert counts.total("exp") == scores


def test_a_scale_on_the_scores_counts_as_one_multiplication_each() -> None:
    plain, scaled = (counted(token_net(name))[0] for name in ("permuted keys", "scale after"))
    assert scaled.total("mul") - plain.total("mul") == 2 * 2 * 16 * 16


@pytest.mark.parametrize("make", [vit, cnn, lambda: token_net("matmul"), lambda: convert(vit(), FULL)])
def test_counts_are_linear_in_the_batch_and_per_image_counts_do_not_depend_on_it(make: Callable[[], nn.Module]) -> None:
    # With five images and more the balanced load of the experts is a whole number of tokens.
    model = make()
    one, four = (counted(model, images(batch))[0] for batch in (5, 20))
    assert four == 4 * one
    assert per_image(four, 20) == per_image(one, 5)


def test_what_has_no_formula_is_listed_with_how_often_it_ran() -> None:
    counts, uncounted = counted(
        Runs(lambda x: torch.fft.fft2(torch.fft.fft2(x).real).real + 1), torch.randn(2, 3, 4, 5)
    )
    assert uncounted == {"fft_fft2": 2}
    assert arithmetic(counts.as_dict()) == {"add.f32": 120}


@pytest.mark.parametrize("make", [vit, cnn, lambda: convert(vit(), FULL)])
def test_the_modules_sum_to_the_whole_and_stand_in_the_order_of_the_forward(make: Callable[[], nn.Module]) -> None:
    model = make()
    trace = probe(model, images(5))
    modules = count_modules(model, trace)
    total = Counter[str]()
    for module in modules:
        total.update(module.operations)
    whole = per_image(count_operations(model, trace)[0], 5)
    assert total.keys() == whole.keys()
    assert all(abs(total[key] - whole[key]) <= 1 for key in whole)  # a share of experts is rounded in each module
    leaves = [path for path, module in model.named_modules() if not any(module.children())]
    called = {call.path: call.first_op for call in trace.calls}
    counted_leaves = [module.path for module in modules if module.path in leaves]
    assert counted_leaves == sorted(counted_leaves, key=called.__getitem__)


def test_an_operator_stands_for_all_that_it_contains() -> None:
    model = convert(vit(), recipe([MLP]))
    paths = {module.path: module for module in count_modules(model, probe(model, images()))}
    assert {"shift.i5", "mul.f32", "exp.f32"} & paths["blocks.0.mlp"].operations.keys() == {"mul.f32"}
    assert paths["blocks.0.mlp.multiply.act"].operations["exp.f32"] == 17 * 64
    assert not any(path.startswith("blocks.0.mlp.shift") for path in paths)


def test_a_shift_weight_is_read_in_its_own_width_and_moved_words_are_those_of_operands_and_results() -> None:
    model = convert(nn.Sequential(nn.Linear(8, 24)), recipe([{**LINEAR, "options": {"bits": 4}}]), torch.zeros(2, 5, 8))
    counts = per_image(counted(model, torch.zeros(2, 5, 8))[0], 2)
    moved = {key: n for key, n in counts.items() if key.startswith(("read.", "write."))}
    assert moved == {"read.f32": 5 * 8, "read.weight.i4": 8 * 24, "read.weight.f32": 24, "write.f32": 5 * 24}


def test_views_move_nothing_and_copies_read_and_write() -> None:
    moved = {}
    for name, function in {
        "view": lambda x: x.transpose(1, 2).unsqueeze(1)[:, 0],
        "copy": lambda x: torch.cat([x, x.flip(1)], 1),
        "gather": lambda x: x[:, torch.tensor([0, 2])],
        "spread": lambda x: x[:, :1].expand(2, 3, 4) + 1,
    }.items():
        counts, uncounted = counted(Runs(function), torch.randn(2, 3, 4))
        moved[name] = (counts.total("read"), counts.total("write"))
        assert not uncounted
    assert moved == {
        "view": (0, 0),
        "copy": (24 + 48, 24 + 48),  # the flip, then both halves
        "gather": (24 + 2 * 2, 16),  # the places are a constant, which each of the two images reads
        "spread": (8, 24),
    }


def test_a_shift_layer_trades_each_multiplication_for_a_shift() -> None:
    before, _ = counted(vit())
    model = convert(vit(), recipe([KEEP_HEAD, LINEAR]))
    after, uncounted = counted(model)
    shifted = 2 * 2 * 17 * (16 * 48 + 16 * 16 + 2 * 16 * 64)
    assert after.total("shift") == shifted
    assert before.total("mul") - after.total("mul") == shifted
    assert after.total("add") == before.total("add")
    assert not uncounted  # and not the rounding of the weights
    assert (
        after.as_dict().items() >= {key: n for key, n in before.as_dict().items() if key[:3] in ("exp", "div")}.items()
    )


def test_binary_attention_multiplies_only_in_its_convolution_and_its_constant() -> None:
    before, _ = counted(vit())
    after, uncounted = counted(convert(vit(), recipe([ATTENTION])))
    products, scores, convolution, constant = 2 * 17**2 * 16, 2 * 17**2, 16 * 16 * 9, 16
    # The classifier reads the class token, so the last block has no convolution.
    assert before.total("mul") - after.total("mul") == 2 * (2 * (products + scores - constant) - convolution)
    assert before.total("exp") - after.total("exp") == 2 * 2 * scores
    assert not uncounted


def test_a_mixture_is_counted_at_its_balanced_load_with_one_activation_for_each_token() -> None:
    before, _ = counted(vit())
    after, uncounted = counted(convert(vit(), recipe([MLP])))
    tokens = 2 * 17
    multiplied = round(tokens * 0.4)
    assert after.total("shift") == 2 * (tokens - multiplied) * 2 * 16 * 64
    router = 2 * tokens * 2 * 16
    assert before.total("mul") - after.total("mul") == 2 * (tokens - multiplied) * 2 * 16 * 64 - router
    assert after.total("cmp") - before.total("cmp") == 2 * tokens
    assert after.total("exp") == before.total("exp")
    assert not uncounted


def test_the_default_recipe_halves_the_multiplications_of_a_pico_vit() -> None:
    before, after = counted(vit())[0], counted(convert(vit(), FULL))[0]
    assert after.total("mul") < before.total("mul") / 2
    assert after.total("mul") + after.total("shift") < before.total("mul")


class ReadsWeight(nn.Module):
    """Calls the product itself, with the weight of its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.qkv.weight)[..., :8]


@pytest.mark.parametrize("parameterisation", ["q", "ps"])
def test_a_shift_layer_whose_weight_is_read_is_counted_as_one(parameterisation: str) -> None:
    called, read = nn.Sequential(nn.Linear(8, 24, bias=False)), ReadsWeight()
    x = torch.randn(2, 5, 8)
    assert counted(read, x) == counted(called, x)
    for model in (called, read):
        convert(model, recipe([{**LINEAR, "options": {"parameterisation": parameterisation}}]), x)
    counts, uncounted = counted(read, x)
    assert counts == counted(called, x)[0]
    assert arithmetic(counts.as_dict()) == {"shift.f32": 1920, "add.f32": 1920}
    assert uncounted == {}


def test_a_module_that_runs_twice_counts_twice() -> None:
    layer = nn.Linear(4, 4)
    once, _ = counted(nn.Sequential(layer), torch.zeros(2, 4))
    twice, _ = counted(nn.Sequential(layer, layer), torch.zeros(2, 4))
    assert twice == 2 * once
    converted = convert(nn.Sequential(nn.Linear(4, 4)), recipe([LINEAR]), torch.zeros(2, 4))
    shifted, _ = counted(nn.Sequential(converted[0], converted[0]), torch.zeros(2, 4))
    assert shifted.total("shift") == 2 * 2 * 16
