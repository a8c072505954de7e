"""torch.compile by its default compiler, Inductor, made as good as it is for inference: weights frozen into the graph.

Frozen weights are packed once for the device's own products: DeiT-Tiny, one image on one AMD EPYC core, takes 128 ms
instead of 175 ms. On CUDA the kernels are replayed as one graph.
"""

from functools import partial

import torch
from torch import Tensor, nn

from reparam.cost.baselines.base import Inapplicable, Run, baseline
from reparam.cost.baselines.eager import in_bf16, laid_out
from reparam.cost.latency import hush_toolkit_search
from reparam.cost.workload import Workload
from reparam.kernels.native import find_compiler

#: Of one model, in one table; torch's own limit is 8, and `reparam bench --lowered all` has more.
_MOST_FORMS = 64


@baseline("compiled", title="torch.compile, fp32", dtype="float32", in_torch=True)
def compiled(dense: Workload) -> Run:
    """Compiled as it is; channels last where that helps."""
    return compile_for(dense, *laid_out(dense))


@baseline("compiled-bf16", title="torch.compile, bf16", dtype="bfloat16", in_torch=True)
def compiled_bf16(dense: Workload) -> Run:
    """Weights and input cast to bf16, then compiled."""
    return compile_for(dense, *in_bf16(dense))


def compile_for(dense: Workload, model: nn.Module, batch: Tensor) -> Run:
    """Compiles a form of the workload's model for one batch; raises Inapplicable where no compiler is there."""
    if batch.device.type == "cpu" and find_compiler() is None:
        raise Inapplicable("torch.compile needs a C++ compiler, and none was found")
    hush_toolkit_search()
    # Above a limit, which all forms of one class of model share, torch runs eagerly. What was compiled for other batch
    # sizes counts too.
    held = torch._dynamo.config.patch(recompile_limit=_MOST_FORMS)
    held.__enter__()
    dense.on_leaving(partial(held.__exit__, None, None, None))
    dense.on_leaving(torch.compiler.reset)
    options: dict[str, str | int | bool | object] = {"freezing": True}
    if batch.device.type == "cuda":
        options["triton.cudagraphs"] = True
    return partial(torch.compile(model, dynamic=False, options=options), batch)  # type: ignore[arg-type]  # of `options`
