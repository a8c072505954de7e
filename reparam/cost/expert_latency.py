"""How long each expert of a mixture takes: measured here on the mixture's own tokens, or modelled from operations.

Measured: both experts run alone on all tokens of one batch, in turns, so that a clock that drifts slows both. What runs
is what runs today in eval: a shift expert rounds its weights in each forward and multiplies by them.

Modelled, for a device whose power is the limit, so that time is proportional to energy:

    latency_i = sum over operations of n_i * E      pJ per token

n_i is how often expert i runs an operation for one token, E the energy of one by the table horowitz-45nm. The router,
activations between the layers, and memory are not in it, so it is a proxy and no prediction of time.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from reparam.cost.energy import price
from reparam.cost.energy_table import load_table
from reparam.cost.latency import device_name
from reparam.cost.rounds import time_in_turns
from reparam.counts import OpCount
from reparam.modes import evaluating
from reparam.ops.channel_layer import count_dense
from reparam.ops.experts import Expert
from reparam.ops.moe import MoeMlp
from reparam.ops.routed_layer import RoutedLayer
from reparam.recipe.schema import Frozen

#: Seconds that all rounds of one expert take together, and how many there are.
_RUN_TIME, _ROUNDS = 0.2, 9
#: Energy of one operation in 45 nm CMOS.
_TABLE = "horowitz-45nm"
_Mixture = MoeMlp | RoutedLayer


class ExpertLatency(Frozen):
    """Median and interquartile range, in milliseconds, of each expert on all `tokens` of `batch` images."""

    multiply_ms: float
    multiply_iqr_ms: float
    shift_ms: float
    shift_iqr_ms: float
    tokens: int
    batch: int
    threads: int
    device: str
    source: Literal["measured here"] = "measured here"

    @property
    def pair(self) -> tuple[float, float]:
        """Time of the multiply and of the shift expert."""
        return self.multiply_ms, self.shift_ms


class ExpertProxy(Frozen):
    """Modelled energy of each expert for one token, in pJ: a latency proxy where power is the limit."""

    multiply_pj: float
    shift_pj: float
    source: Literal["modelled"] = "modelled"

    @property
    def pair(self) -> tuple[float, float]:
        """Cost of the multiply and of the shift expert."""
        return self.multiply_pj, self.shift_pj


def measure_experts(
    model: nn.Module, example_input: Tensor, *, run_time: float = _RUN_TIME
) -> dict[str, ExpertLatency]:
    """Times the experts of every mixture; leaves every module in its mode.

    Args:
        model: on the device of `example_input`.
        example_input: one training batch (B, ...); one forward shows which tokens each mixture gets.
        run_time: seconds for one expert.
    Returns:
        Path of each `MoeMlp` that mixes no tokens, and of each `RoutedLayer` -> its latencies. Mixtures of one shape
        are measured once.
    """
    found: dict[str, ExpertLatency] = {}
    alike: dict[object, ExpertLatency] = {}
    with evaluating(model):
        for path, (mixture, tokens, experts) in _seen(model, example_input).items():
            key = (repr(mixture), tokens.shape, tokens.dtype)
            if key not in alike:
                alike[key] = _measure(experts, tokens, batch=len(example_input), run_time=run_time)
            found[path] = alike[key]
    return found


def model_experts(model: nn.Module) -> dict[str, ExpertProxy]:
    """Prices the experts of every mixture, by the paths of `measure_experts`; runs nothing."""
    return {path: _model(mixture) for path, mixture in _mixtures(model).items()}


def _model(mixture: _Mixture) -> ExpertProxy:
    multiply, shift = OpCount(), OpCount()
    for dense, shifted in mixture.expert_layers():
        multiply += count_dense(dense, 1)
        shift += shifted.op_count((1, shifted.in_features))
    table = load_table(_TABLE)
    multiply_pj, shift_pj = (price(count.as_dict(), table).picojoules for count in (multiply, shift))
    return ExpertProxy(multiply_pj=multiply_pj, shift_pj=shift_pj)


def _mixtures(model: nn.Module) -> dict[str, _Mixture]:
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, RoutedLayer) or (isinstance(module, MoeMlp) and not module.form.mixes_tokens)
    }


def _seen(model: nn.Module, example_input: Tensor) -> dict[str, tuple[_Mixture, Tensor, tuple[Expert, Expert]]]:
    """Each mixture with the tokens (T, C) of its first call and the experts as that call runs them."""
    seen: dict[str, tuple[_Mixture, Tensor, tuple[Expert, Expert]]] = {}
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, path: str) -> None:
        calls.setdefault(path, (args, kwargs))

    def route(module: nn.Module, args: tuple[Any, ...], *, path: str, mixture: _Mixture) -> None:
        seen.setdefault(path, (mixture, args[0], _experts(mixture, *calls[path])))

    # Not inference mode: what a model caches on the way must stay usable in training.
    with ExitStack() as hooks, torch.no_grad():
        for path, mixture in _mixtures(model).items():
            on_call: Callable[..., None] = partial(call, path=path)
            on_route: Callable[..., None] = partial(route, path=path, mixture=mixture)
            hooks.callback(mixture.register_forward_pre_hook(on_call, with_kwargs=True).remove)
            hooks.callback(mixture.router.register_forward_pre_hook(on_route).remove)
        model(example_input)
    return seen


def _experts(mixture: _Mixture, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Expert, Expert]:
    if isinstance(mixture, RoutedLayer):
        return mixture.experts()
    return mixture.experts(args[0].dim(), args[1:], kwargs)


def _measure(experts: tuple[Expert, Expert], tokens: Tensor, *, batch: int, run_time: float) -> ExpertLatency:
    threads = torch.get_num_threads()
    runs = [partial(torch.inference_mode()(run), tokens) for run in experts]
    multiply, shift = time_in_turns(dict(enumerate(runs)), threads=threads, seconds=run_time, rounds=_ROUNDS).values()
    return ExpertLatency(
        multiply_ms=multiply.median_ms,
        multiply_iqr_ms=multiply.iqr_ms,
        shift_ms=shift.median_ms,
        shift_iqr_ms=shift.iqr_ms,
        tokens=len(tokens),
        batch=batch,
        threads=threads,
        device=device_name(tokens.device),
    )
