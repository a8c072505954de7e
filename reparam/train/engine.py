"""The one place that knows the engine, HF Accelerate: device, precision, and how gradients are stepped.

Accelerate changes the `forward` of whatever it prepares. A thin container is prepared instead of the model, so the
model that is saved, averaged and evaluated stays as it was, under DDP and autocast too.
"""

import os
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from reparam.errors import OptionError, TrainError
from reparam.processes import is_launched
from reparam.recipe.settings import TrainSettings
from reparam.suggest import did_you_mean
from reparam.train.sharding import is_sharded
from reparam.train.step_gradients import StepGradients, gradient_norm

#: What `accelerate launch` passes on of its own settings, the values that change nothing, and what to say instead.
_LAUNCHER_SETTINGS = {
    "ACCELERATE_MIXED_PRECISION": ("no", "say --amp and --amp-dtype"),
    "ACCELERATE_DYNAMO_BACKEND": ("no", "say --torchcompile"),
    "ACCELERATE_USE_FSDP": ("false", "say --fsdp"),
    "ACCELERATE_USE_DEEPSPEED": ("false", "say --fsdp"),
    "ACCELERATE_USE_MEGATRON_LM": ("false", "say --fsdp"),
}
_PRECISIONS = {"bfloat16": "bf16", "float16": "fp16"}


class Student(nn.Module):
    """The container that is prepared in the model's place."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Returns the model's logits (B, K) of images (B, C, H, W)."""
        logits: Tensor = self.model(images)
        return logits


class Engine:
    """One model and its optimiser on one device, stepped by Accelerate."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, settings: TrainSettings, *, device: torch.device
    ) -> None:
        self.accelerator = _accelerator(settings, device)
        self._model, self._clip = model, settings.clip_grad
        self._gradients = StepGradients.of(model)
        # What is sharded is not to be copied to each process (DDP): Accelerate calls that evaluation mode.
        with warnings.catch_warnings():  # torch renames the option, and Accelerate has the old name alone
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
            self.student = self.accelerator.prepare_model(Student(model), evaluation_mode=is_sharded(model))
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        if settings.torchcompile is not None:
            self.student = _compiled(self.student, settings.torchcompile)

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """What scales the loss in half precision."""
        scaler: torch.amp.GradScaler | None = self.accelerator.scaler
        return scaler

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the forward pass, for what runs beside the student, such as the teacher."""
        precision: AbstractContextManager[Any] = self.accelerator.autocast()
        return precision

    def accumulation(self, *, is_last: bool) -> AbstractContextManager[Any]:
        """Around each micro-batch: only the last one of a step exchanges gradients with other processes."""
        if isinstance(self._model, FSDPModule):
            self._model.set_requires_gradient_sync(is_last)
        return nullcontext() if is_last else self.accelerator.no_sync(self.student)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of the loss, scaled where the precision needs it."""
        self.accelerator.backward(loss)

    def clip(self) -> Tensor | None:
        """Clips the gradient where that is asked for; returns a norm that is finite only where the gradient was.

        It may be that of this process's slices alone. None where a scaler judges the gradient and leaves steps out.
        """
        norm: Tensor | None = None
        if self._clip is not None:
            norm = self.accelerator.clip_grad_norm_(self._gradients.others, self._clip)  # which unscales
        if self.scaler is not None:
            return None
        scaled = [parameter for parameter, _ in self._gradients.scaled]
        if norm is None:
            return gradient_norm([*self._gradients.others, *scaled])
        clipped = norm.full_tensor() if isinstance(norm, DTensor) else norm
        return torch.hypot(clipped, gradient_norm(scaled).to(clipped)) if scaled else clipped

    def step(self) -> None:
        """Gives the gradients that want it a norm of their own, steps the optimiser, clears the gradients."""
        if self._clip is None and self._gradients.scaled:
            self.accelerator.unscale_gradients(self.optimizer)
        self._gradients.scale_()
        self.optimizer.step()
        self.optimizer.zero_grad()


def pick_device(name: str | None = None) -> torch.device:
    """Returns the named device, or CUDA where there is one, else the CPU.

    Under a distributed launch each process gets a device of that kind for itself, and they find each other here.

    Raises:
        TrainError: no such device.
        OptionError: settings of `accelerate launch` that are ours to make.
    """
    _refuse_launcher_settings()
    if is_launched():
        return _own_device(name)
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise TrainError(f'no device is called "{name}"; say cpu, cuda or cuda:1') from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise TrainError(f"there is no {name} here, only {torch.cuda.device_count()} CUDA devices; say --device cpu")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # Accelerate takes the current one
    if device.type not in ("cpu", "cuda"):
        _refuse_unusable(device)
    return device


def _refuse_unusable(device: torch.device) -> None:
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise TrainError(f"nothing can be computed on {device} here; say --device cpu") from error


def _refuse_launcher_settings() -> None:
    for name, (nothing, instead) in _LAUNCHER_SETTINGS.items():
        value = os.environ.get(name, nothing)
        if value.lower() != nothing:
            raise OptionError(
                f"accelerate launch sets {name}={value}, which is a setting of the training here: turn it off there "
                f"(its flags, or accelerate config) and {instead}"
            )


def _own_device(name: str | None) -> torch.device:
    # DDP says so of depthwise weights, whose axis of length 1 may have any stride.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    if name not in (None, "cpu", "cuda"):
        raise TrainError(f"--device {name}: several processes take a device each; say cpu, cuda, or nothing")
    device: torch.device = PartialState(cpu=name == "cpu").device
    return device


def image_shares(micro_batches: Sequence[tuple[Tensor, Tensor]]) -> list[float]:
    """The share of a step's images in each of its micro-batches: the weight of its mean loss; they sum to 1."""
    sizes = [len(images) for images, _ in micro_batches]
    return [size / sum(sizes) for size in sizes]


def check_backend(name: str) -> None:
    """Raises OptionError unless torch knows the compiler backend."""
    known = [*torch._dynamo.list_backends(), "eager", "aot_eager"]
    if name not in known:
        hint = did_you_mean(name, known) or f" Known: {', '.join(sorted(known))}."
        raise OptionError(f'torchcompile: unknown compiler backend "{name}".{hint}')


def _compiled(student: nn.Module, backend: str) -> nn.Module:
    check_backend(backend)
    compiled: nn.Module = torch.compile(student, backend=backend)  # type: ignore[assignment]  # it is a module again
    return compiled


def _accelerator(settings: TrainSettings, device: torch.device) -> Accelerator:
    precision = _PRECISIONS[settings.amp_dtype] if settings.amp else "no"
    if precision == "fp16" and device.type == "cpu":
        raise OptionError('amp_dtype = "float16" needs a GPU; on a CPU say amp_dtype = "bfloat16"')
    _forget_other_state(precision, device)
    # Each process keeps what it observes until it is put together (`reparam.train.observed`).
    copied = DistributedDataParallelKwargs(broadcast_buffers=False)
    return Accelerator(mixed_precision=precision, cpu=device.type == "cpu", kwargs_handlers=[copied])


def _forget_other_state(precision: str, device: torch.device) -> None:
    """Accelerate keeps one state per process and refuses another precision; the stages of a run may differ in it."""
    state = AcceleratorState._shared_state
    if not state:
        return
    moves = state["device"].type != device.type
    if moves or state["_mixed_precision"] != precision:
        AcceleratorState._reset_state(reset_partial_state=moves and PartialState().num_processes == 1)
