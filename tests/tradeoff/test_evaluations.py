"""An evaluation from a cut on gives the bits of one of the whole network; the oracle is the model itself."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam.errors import DataError
from reparam.trace.probe import probe
from reparam.tradeoff.cuts import find_cuts
from reparam.tradeoff.evaluations import Evaluations
from tests.pico import vit
from tests.tradeoff.models import (
    ReadingValues,
    Skipping,
    WritingInPlace,
    batches,
    lively,
    resnet,
    timm_model,
)

PLENTY = 1e9
MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "ViT": (lambda: vit(depth=3), 16),
    "distilled ViT": (lambda: vit(depth=2, distilled=True), 16),
    "ResNet": (resnet, 16),
    "skips over the cut": (Skipping, 16),
    "writes in place": (WritingInPlace, 16),
    "rotary positions, made by a module": (
        timm_model("eva02_tiny_patch14_224", img_size=28, depth=2, embed_dim=24, num_heads=2),
        28,
    ),
    "windows": (
        timm_model("swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=12, depths=(1, 2)),
        32,
    ),
    "concatenation": (timm_model("densenet121", growth_rate=4, block_config=(2, 2)), 32),
    "two branches": (timm_model("crossvit_9_240", embed_dim=(8, 16), num_heads=(2, 2), depth=((1, 1, 0),)), 240),
}
models = pytest.mark.parametrize(("make", "side"), MODELS.values(), ids=MODELS.keys())


def evaluations_of(dense: nn.Module, data: Sequence[Any], *, limit: int = 100, memory: float = PLENTY) -> Evaluations:
    trace = probe(dense, data[0][0])
    here = torch.device("cpu")
    return Evaluations(dense, data, limit=limit, cuts=find_cuts(trace), memory=memory, device=here)  # type: ignore[arg-type]


def whole(model: nn.Module, data: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(images) for images, _ in data])


@models
def test_from_every_cut_on_the_logits_have_the_bits_of_the_whole_network(
    make: Callable[[], nn.Module], side: int
) -> None:
    dense, data = lively(make), batches(3, 3, 2, side=side)
    evaluations = evaluations_of(dense, data)
    cuts = [cut for cut in evaluations.cuts if evaluations.cut_before(cut.position) == cut]
    assert cuts or "cross" in type(dense).__name__.lower()
    answers = evaluations.dense_answers(cuts[0] if cuts else None)
    assert torch.equal(answers.logits, whole(dense, data))
    for cut in cuts or [None]:
        assert torch.equal(evaluations.logits(dense, cut), whole(dense, data))


def test_a_model_that_differs_behind_the_cut_gives_its_own_bits() -> None:
    dense, data = lively(lambda: vit(depth=3)), batches(3, 2)
    changed = lively(lambda: vit(depth=3))
    with torch.no_grad():
        changed.get_parameter("blocks.2.mlp.fc1.weight").mul_(1.5)
    evaluations = evaluations_of(dense, data)
    cut = next(cut for cut in evaluations.cuts if cut.path == "blocks.2")
    evaluations.dense_answers(cut)
    assert torch.equal(evaluations.logits(changed, cut), whole(changed, data))
    assert not torch.equal(whole(changed, data), whole(dense, data))


def test_the_images_may_be_the_start_kept_or_read_again() -> None:
    dense, data = lively(vit), batches(3, 2)
    for memory in (PLENTY, 0):
        evaluations = evaluations_of(dense, data, memory=memory)
        evaluations.dense_answers(None)
        assert torch.equal(evaluations.logits(dense, None), whole(dense, data))
        last = evaluations.cut_before(10**6)
        assert (last is None) == (memory == 0)
        if last is not None:
            assert torch.equal(evaluations.logits(dense, last), whole(dense, data))


def test_a_proof_fails_where_a_cut_hides_a_second_reader() -> None:
    dense, data = lively(Skipping), batches(3)
    trace = probe(dense, data[0][0])
    position = next(call.first_op for call in trace.calls if call.path == "second")
    forged = replace(find_cuts(trace)[0], path="second", position=position, skipped=("stem", "first"))
    evaluations = Evaluations(dense, data, limit=3, cuts=[forged], memory=PLENTY, device=torch.device("cpu"))  # type: ignore[arg-type]
    assert evaluations.cut_before(10**6) is None


def test_what_does_not_fit_gives_way_to_the_last_cut_that_does() -> None:
    dense, data = lively(resnet), batches(4)
    evaluations = evaluations_of(dense, data, limit=4)
    sizes = {cut.path: cut.bytes_per_image for cut in evaluations.cuts}
    assert sizes["layer1.0"] > sizes["fc"]
    small = evaluations_of(dense, data, limit=4, memory=4 * sizes["fc"])
    assert {cut.path for cut in small.cuts} == {path for path, size in sizes.items() if size <= sizes["fc"]}


def test_a_model_that_reads_values_is_run_whole() -> None:
    dense, data = lively(ReadingValues), batches(3)
    evaluations = evaluations_of(dense, data)
    assert evaluations.cut_before(10**6) is None
    evaluations.dense_answers(None)
    assert torch.equal(evaluations.logits(dense, None), whole(dense, data))


def test_only_so_many_images_are_used() -> None:
    dense, data = lively(vit), batches(3, 3)
    evaluations = evaluations_of(dense, data, limit=4)
    answers = evaluations.dense_answers(evaluations.cut_before(10**6))
    assert torch.equal(answers.logits, torch.cat([whole(dense, data[:1]), whole(dense, [(data[1][0][:1], Tensor())])]))
    assert answers.labels.tolist() == [0, 1, 2, 0]


def test_no_images_are_a_data_error() -> None:
    dense = lively(vit)
    evaluations = Evaluations(dense, [], limit=1, cuts=[], memory=0, device=torch.device("cpu"))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no images"):
        evaluations.dense_answers(None)


def test_n_models_cost_at_most_n_plus_one_runs_of_every_block() -> None:
    dense, data = lively(lambda: vit(depth=4)), batches(8, 8)
    evaluations = evaluations_of(dense, data)
    cuts = [evaluations.cut_before(position) for position in (0, *(cut.position for cut in evaluations.cuts))]
    seen: Counter[str] = Counter()
    for path, module in dense.named_modules():
        if path.endswith(".attn"):  # what a block is left out with
            module.register_forward_hook(lambda m, a, out, path=path: seen.update({path: len(out)}))
    evaluations.dense_answers(cuts[0])
    for cut in cuts:
        evaluations.logits(dense, cut)
    runs = {path: images / 16 for path, images in seen.items()}
    assert max(runs.values()) <= len(cuts) + 1
    assert runs["blocks.0.attn"] < runs["blocks.3.attn"]
    assert sum(runs.values()) < 4 * (len(cuts) + 1)


def test_nothing_is_left_on_the_models() -> None:
    dense, data = lively(vit), batches(2)
    evaluations = evaluations_of(dense, data)
    cut = evaluations.cut_before(10**6)
    evaluations.dense_answers(evaluations.cut_before(0))
    evaluations.logits(dense, cut)
    for module in dense.modules():
        assert "forward" not in vars(module)
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
