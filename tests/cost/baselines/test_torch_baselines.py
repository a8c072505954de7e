"""What runs in torch: types, memory formats and compiler options as asked for; the compiler itself is not run."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.cost.baselines.base import BASELINES, Inapplicable
from reparam.cost.baselines.eager import laid_out
from reparam.cost.workload import Workload
from reparam.lowering.plain import PlainShiftConv2d
from tests.pico import cnn, convert, images, recipe, vit


class Sees(nn.Module):
    """Notes what it is given, before a model that is run on it."""

    def __init__(self, model: nn.Module, seen: list[Tensor]) -> None:
        super().__init__()
        self.model, self.seen = model, seen

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return self.model(x)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Sees":
        import copy

        return Sees(copy.deepcopy(self.model, memo), self.seen)


@pytest.fixture
def seen() -> list[Tensor]:
    return []


@pytest.fixture
def workload(seen: list[Tensor]) -> Iterator[Callable[[nn.Module], Workload]]:
    made: list[Workload] = []

    def make(model: nn.Module) -> Workload:
        made.append(Workload(Sees(model, seen).eval(), images(), threads=1))
        return made[-1]

    yield make
    for one in made:
        one.__exit__(None, None, None)


def test_eager_is_the_model_itself(workload: Callable[[nn.Module], Workload], seen: list[Tensor]) -> None:
    dense = workload(vit())
    out = BASELINES.get("eager").prepare(dense)()
    assert seen[0] is dense.batch
    assert torch.equal(out, dense.model(dense.batch))  # type: ignore[arg-type]


def test_channels_last_is_for_convolutional_networks(
    workload: Callable[[nn.Module], Workload], seen: list[Tensor]
) -> None:
    dense = workload(cnn())
    BASELINES.get("channels-last").prepare(dense)()
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(Inapplicable, match="no convolutional network"):
        BASELINES.get("channels-last").prepare(workload(vit()))  # a patch embedding is one convolution


def test_only_convolutions_are_laid_out_anew() -> None:
    """Whatever else has four axes or more, such as a lowered layer's packed weights, is in an order of its own."""
    model = cnn()
    model.register_buffer("codes", torch.zeros(2, 3, 4, 5))
    model.register_buffer("tiles", torch.zeros(2, 3, 4, 5, 6))
    with Workload(model.eval(), images(), threads=1) as dense:
        laid, _ = laid_out(dense)
    assert laid.get_buffer("codes").is_contiguous()
    assert laid.get_buffer("tiles").is_contiguous()
    kernels = [module.weight for module in laid.modules() if isinstance(module, nn.Conv2d)]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def test_lowered_convolutions_are_laid_out_as_dense_ones_are_and_packed_ones_as_they_were() -> None:
    model = convert(cnn(), recipe([{"match": {"kind": "conv2d"}, "operator": "shift_conv2d"}]))
    for backend in ("float32", "int8"):
        form = reparam.lower(model, backend).model
        before = {name: tensor.stride() for name, tensor in form.named_buffers()}
        with Workload(form, images(), threads=1) as converted:
            laid, batch = laid_out(converted)
            assert batch.is_contiguous(memory_format=torch.channels_last)
            assert torch.allclose(laid(batch), form(images()), atol=1e-5)
        assert {name: tensor.stride() for name, tensor in laid.named_buffers()} == before
        kernels = [module.weight for module in laid.modules() if isinstance(module, nn.Conv2d | PlainShiftConv2d)]
        assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


@pytest.mark.parametrize("make", [vit, cnn], ids=["vit", "cnn"])
def test_bf16_casts_a_copy_and_its_input(
    workload: Callable[[nn.Module], Workload], seen: list[Tensor], make: Callable[[], nn.Module]
) -> None:
    dense = workload(make())
    out = BASELINES.get("bf16").prepare(dense)()
    assert isinstance(out, Tensor)
    assert (out.dtype, seen[0].dtype) == (torch.bfloat16, torch.bfloat16)
    assert seen[0].is_contiguous(memory_format=torch.channels_last) is (make is cnn)
    assert {parameter.dtype for parameter in dense.model.parameters()} == {torch.float32}


def test_bf16_leaves_integer_inputs_alone() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4))
    out = BASELINES.get("bf16").prepare(Workload(model, torch.zeros(2, 3, dtype=torch.int64), threads=1))()
    assert isinstance(out, Tensor)
    assert out.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("compiled", torch.float32), ("compiled-bf16", torch.bfloat16), ("torchao-int8-compiled", torch.float32)],
)
@pytest.mark.filterwarnings("ignore")  # torchao's use of what torch deprecates
def test_the_compiler_gets_fixed_sizes_and_freezes_weights(
    workload: Callable[[nn.Module], Workload],
    seen: list[Tensor],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    dtype: torch.dtype,
) -> None:
    if name.startswith("torchao"):
        pytest.importorskip("torchao")
    asked: list[dict[str, Any]] = []
    resets: list[str] = []

    def fake_compile(model: nn.Module, **options: Any) -> nn.Module:
        asked.append(options)
        return model

    monkeypatch.setattr("reparam.cost.baselines.compiled.find_compiler", lambda: "/usr/bin/c++")
    monkeypatch.setattr(torch, "compile", fake_compile)
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append("reset"))
    with workload(vit()) as dense:
        BASELINES.get(name).prepare(dense)()
        assert resets == []  # it would throw away what the next run needs
    assert asked == [{"dynamic": False, "options": {"freezing": True}}]
    assert seen[0].dtype == dtype
    assert resets == ["reset"]


def test_every_form_of_a_table_is_compiled_though_torch_would_run_the_later_ones_eagerly(
    workload: Callable[[nn.Module], Workload], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiling = torch.compile
    monkeypatch.setattr("reparam.cost.baselines.compiled.find_compiler", lambda: "/usr/bin/c++")
    monkeypatch.setattr(torch, "compile", lambda model, **_: compiling(model, backend="eager"))
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        with workload(vit(depth=1)) as dense:
            for depth in (1, 2, 3):
                BASELINES.get("compiled").prepare(dense.beside(vit(depth=depth).eval()))()
        assert torch._dynamo.config.recompile_limit == 1  # as it was


def test_without_a_compiler_nothing_is_compiled_and_the_reason_says_so(
    workload: Callable[[nn.Module], Workload], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reparam.cost.baselines.compiled.find_compiler", lambda: None)
    with pytest.raises(Inapplicable, match=r"^torch.compile needs a C\+\+ compiler, and none was found$"):
        BASELINES.get("compiled").prepare(workload(vit()))
