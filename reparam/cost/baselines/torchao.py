"""torchao's int8 on the CPU: weights in int8 per channel, activations in int8 per token as they come."""

import copy
from functools import partial

from torch import nn

from reparam.cost.baselines.base import Run, baseline, hushed, want_cpu, want_packages
from reparam.cost.baselines.compiled import compile_for
from reparam.cost.workload import Workload


@baseline("torchao-int8", title="torchao, dynamic int8", dtype="int8", in_torch=True)
def torchao_int8(dense: Workload) -> Run:
    """Linear layers quantised, run eagerly."""
    return partial(_quantised(dense), dense.batch)


@baseline("torchao-int8-compiled", title="torchao, dynamic int8, torch.compile", dtype="int8", in_torch=True)
def torchao_int8_compiled(dense: Workload) -> Run:
    """The same, compiled, as torchao advises."""
    return compile_for(dense, _quantised(dense), dense.batch)


def _quantised(dense: Workload) -> nn.Module:
    want_packages("torchao")
    want_cpu(dense, "torchao's int8")
    with hushed():
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        model = copy.deepcopy(dense.model)
        quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return model
