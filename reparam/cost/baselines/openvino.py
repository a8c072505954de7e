"""OpenVINO on the CPU, tuned for latency: in float32, in bf16 where the CPU has instructions for it, and in int8."""

from functools import partial
from typing import TYPE_CHECKING

from reparam.cost.baselines.base import Inapplicable, Run, baseline, hushed, want_cpu, want_packages
from reparam.cost.workload import Workload
from reparam.models.openvino import import_openvino

if TYPE_CHECKING:
    from openvino import Core, Model


@baseline("openvino", title="OpenVINO, fp32", dtype="float32")
def openvino_fp32(dense: Workload) -> Run:
    """The exported program, computed in float32."""
    return _request(_graph(dense), dense, precision="f32")


@baseline("openvino-bf16", title="OpenVINO, bf16", dtype="bfloat16")
def openvino_bf16(dense: Workload) -> Run:
    """The exported program, computed in bf16; input and output stay float32."""
    _want(dense)
    if "BF16" not in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise Inapplicable("this CPU has no instructions for bf16 that OpenVINO knows; it would compute in fp32")
    return _request(_graph(dense), dense, precision="bf16")


@baseline("openvino-int8", title="OpenVINO, int8 (NNCF)", dtype="int8")
def openvino_int8(dense: Workload) -> Run:
    """Quantised after training: weights in int8 per channel, activations by the ranges of the batch that is timed."""
    want_packages("nncf")
    graph = _graph(dense)
    with hushed():
        import nncf

        images = nncf.Dataset([dense.batch.numpy()])
        # Its scheme for models with attention, which leaves softmax in float, serves convolutional networks too.
        quantised = nncf.quantize(graph, images, model_type=nncf.ModelType.TRANSFORMER, subset_size=1)
    return _request(quantised, dense, precision="f32")


def _core() -> "Core":
    core: Core = import_openvino().Core()
    return core


def _want(dense: Workload) -> None:
    want_packages("openvino")
    want_cpu(dense, "OpenVINO")


def _graph(dense: Workload) -> "Model":
    _want(dense)
    graph: Model = import_openvino().convert_model(dense.exported())
    graph.reshape(list(dense.batch.shape))
    return graph


def _request(graph: "Model", dense: Workload, *, precision: str) -> Run:
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": dense.threads,
    }
    request = _core().compile_model(graph, "CPU", settings).create_infer_request()
    return partial(request.infer, [dense.batch.numpy()], share_inputs=True, share_outputs=True)
