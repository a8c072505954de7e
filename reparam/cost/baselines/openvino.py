"""OpenVINO on the CPU, tuned for latency: in float32, and in bf16 where the CPU has instructions for it."""

from functools import partial

from reparam.cost.baselines.base import Inapplicable, Run, baseline, want_cpu, want_packages
from reparam.cost.workload import Workload


@baseline("openvino", title="OpenVINO, fp32", dtype="float32")
def openvino_fp32(dense: Workload) -> Run:
    """The exported program, computed in float32."""
    return _request(dense, precision="f32")


@baseline("openvino-bf16", title="OpenVINO, bf16", dtype="bfloat16")
def openvino_bf16(dense: Workload) -> Run:
    """The exported program, computed in bf16; input and output stay float32."""
    return _request(dense, precision="bf16")


def _request(dense: Workload, *, precision: str) -> Run:
    want_packages("openvino")
    want_cpu(dense, "OpenVINO")
    import openvino

    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise Inapplicable("this CPU has no instructions for bf16 that OpenVINO knows; it would compute in fp32")
    graph = openvino.convert_model(dense.exported())
    graph.reshape(list(dense.batch.shape))
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": dense.threads,
    }
    request = core.compile_model(graph, "CPU", settings).create_infer_request()
    return partial(request.infer, [dense.batch.numpy()], share_inputs=True, share_outputs=True)
