"""Counts against hand counts: products, additions, what is free, and what is only listed."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.cost.count import count_operations, per_image
from reparam.counts import OpCount
from reparam.trace.probe import probe
from tests.pico import ATTENTION, FULL, KEEP_HEAD, LINEAR, MLP, cnn, convert, images, recipe, token_net, vit


def counted(model: nn.Module, x: Tensor | None = None) -> tuple[OpCount, Counter[str]]:
    x = images() if x is None else x
    return count_operations(model, probe(model, x))


def vit_macs(*, tokens: int, width: int, patches: int, patch: int, depth: int, classes: int) -> int:
    """Multiply-accumulates of one image through a ViT with 4x MLPs, counted on paper."""
    embed = patches * width * 3 * patch**2
    projections = tokens * width * (3 * width + width)
    products = 2 * tokens**2 * width
    mlp = 2 * tokens * width * 4 * width
    return embed + depth * (projections + products + mlp) + width * classes


def test_the_multiplications_of_a_pico_vit_are_those_counted_on_paper() -> None:
    counts, _ = counted(vit())
    assert counts.total("mul") == 2 * vit_macs(tokens=17, width=16, patches=16, patch=4, depth=2, classes=3)


def test_the_multiplications_of_deit_tiny_are_those_counted_on_paper_and_published() -> None:
    model = vit(img_size=224, patch_size=16, embed_dim=192, depth=12, num_heads=3, num_classes=1000).to("meta")
    counts, _ = counted(model, torch.empty(1, 3, 224, 224, device="meta"))
    wanted = vit_macs(tokens=197, width=192, patches=196, patch=16, depth=12, classes=1000)
    assert counts.total("mul") == wanted
    assert wanted / 1e9 == pytest.approx(1.3, abs=0.05)  # DeiT, table 1, gives 1.3 GFLOPs (multiply-accumulates)


def test_the_additions_of_a_pico_vit_are_accumulations_biases_and_residuals() -> None:
    counts, _ = counted(vit())
    tokens, width = 17, 16
    biases = 16 * width + 2 * tokens * (3 * width + width + 4 * width + width) + 3
    residuals = tokens * width * (1 + 2 * 2)  # the position embedding, and two in each block
    assert counts.total("add") == counts.total("mul") + 2 * (biases + residuals)


def test_a_grouped_convolution_counts_the_channels_of_its_group() -> None:
    counts, _ = counted(cnn())
    first, grouped, head = 16 * 16 * 4 * 3 * 9, 14 * 14 * 4 * 1 * 9, 4 * 3
    assert counts.total("mul") == 2 * (first + grouped + head)
    assert counts.total("add") == counts.total("mul") + 2 * (16 * 16 * 4 + 3)


@pytest.mark.parametrize("spelling", ["permuted keys", "softmax module", "product modules", "fused"])
def test_fused_and_written_attention_count_the_same_products(spelling: str) -> None:
    counts, _ = counted(token_net(spelling))
    stem, projections, products, head = 16 * 8 * 48, 16 * 8 * 32, 2 * 16 * 16 * 8, 8 * 3
    assert counts.total("mul") == 2 * (stem + projections + products + head)


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
    products = 2 * (2 * 4 * 3) * 8
    assert counts.total("mul") == layers + products
    assert counts.total("add") - counts.total("mul") == bias * (2 * queries * 8 + 2 * keys * 8)


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


def test_functions_without_a_formula_are_listed_and_moves_of_data_are_not() -> None:
    assert counted(vit())[1] == {"gelu": 2, "layer_norm": 5}
    assert counted(token_net("softmax module"))[1] == {"softmax": 1, "layer_norm": 1, "mean": 1}
    assert counted(cnn())[1] == {"batch_norm": 1, "relu": 1, "adaptive_avg_pool2d": 1}


def test_a_shift_layer_trades_each_multiplication_for_a_shift() -> None:
    before, _ = counted(vit())
    model = convert(vit(), recipe([KEEP_HEAD, LINEAR]))
    after, uncounted = counted(model)
    shifted = 2 * 2 * 17 * (16 * 48 + 16 * 16 + 2 * 16 * 64)
    assert after.total("shift") == shifted
    assert before.total("mul") - after.total("mul") == shifted
    assert after.total("add") == before.total("add")
    assert uncounted == {"gelu": 2, "layer_norm": 5}  # and not the rounding of the weights


def test_binary_attention_multiplies_only_in_its_convolution_and_its_constant() -> None:
    before, _ = counted(vit())
    after, uncounted = counted(convert(vit(), recipe([ATTENTION])))
    products, convolution, constant = 2 * 17**2 * 16, 16 * 16 * 9, 16
    # The classifier reads the class token, so the last block has no convolution.
    assert before.total("mul") - after.total("mul") == 2 * (2 * (products - constant) - convolution)
    assert uncounted == {"gelu": 2, "layer_norm": 5}


def test_a_mixture_is_counted_at_its_balanced_load_and_lists_the_activations_of_both_experts() -> None:
    before, _ = counted(vit())
    after, uncounted = counted(convert(vit(), recipe([MLP])))
    tokens = 2 * 17
    multiplied = round(tokens * 0.4)
    assert after.total("shift") == 2 * (tokens - multiplied) * 2 * 16 * 64
    router = 2 * tokens * 2 * 16
    assert before.total("mul") - after.total("mul") == 2 * (tokens - multiplied) * 2 * 16 * 64 - router
    assert after.total("cmp") == 2 * tokens
    # Each expert has its own; nothing of the router, the dispatch or the rounding is listed.
    assert uncounted == {"gelu": 4, "layer_norm": 5}


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
    assert counts == counted(called, x)[0] == OpCount({("shift", "f32"): 1920, ("add", "f32"): 1920})
    assert uncounted == {}


def test_a_module_that_runs_twice_counts_twice() -> None:
    layer = nn.Linear(4, 4)
    once, _ = counted(nn.Sequential(layer), torch.zeros(2, 4))
    twice, _ = counted(nn.Sequential(layer, layer), torch.zeros(2, 4))
    assert twice == 2 * once
    converted = convert(nn.Sequential(nn.Linear(4, 4)), recipe([LINEAR]), torch.zeros(2, 4))
    shifted, _ = counted(nn.Sequential(converted[0], converted[0]), torch.zeros(2, 4))
    assert shifted.total("shift") == 2 * 2 * 16
