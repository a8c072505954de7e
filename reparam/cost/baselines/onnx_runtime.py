"""ONNX Runtime on the CPU: in float32, and with weights and activations of products in int8, quantised dynamically."""

from functools import partial
from pathlib import Path

from reparam.cost.baselines.base import Run, baseline, hushed, want_cpu, want_packages
from reparam.cost.instructions import saturates
from reparam.cost.workload import Workload


@baseline("onnxruntime", title="ONNX Runtime, fp32", dtype="float32")
def onnxruntime(dense: Workload) -> Run:
    """The exported graph with all of the runtime's optimisations."""
    _want(dense)
    return _session_run(dense.onnx_file(), dense)


@baseline("onnxruntime-int8", title="ONNX Runtime, dynamic int8", dtype="int8")
def onnxruntime_int8(dense: Workload) -> Run:
    """Weights in int8 per channel, activations in int8 by the range of each batch."""
    _want(dense)
    from onnxruntime.quantization import QuantType, quant_pre_process, quantize_dynamic

    folder = dense.folder()
    with hushed():
        quant_pre_process(str(dense.onnx_file()), str(folder / "inferred.onnx"), skip_symbolic_shape=True)
        quantize_dynamic(
            folder / "inferred.onnx",
            folder / "int8.onnx",
            weight_type=QuantType.QInt8,
            per_channel=True,
            # Without VNNI, sums of two products saturate at 16 bits on x86; with one bit less they do not.
            reduce_range=saturates(),
        )
    return _session_run(folder / "int8.onnx", dense)


def _want(dense: Workload) -> None:
    want_packages("onnxruntime", "onnx", "onnxscript")
    want_cpu(dense, "ONNX Runtime")


def _session_run(path: Path, dense: Workload) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = dense.threads
    options.log_severity_level = 3  # errors; they are raised too
    # Its threads may spin between the layers of a run, and not into the run of another engine.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return partial(session.run, None, {session.get_inputs()[0].name: dense.batch.numpy()})
