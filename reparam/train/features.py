"""Distillation of features: the student's intermediate outputs are pulled towards the teacher's at the same paths.

Each loss below takes outputs of one module: student and teacher (B, ...), alike in shape, and returns a scalar in
float32, under autocast too. The gradient goes to the student alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from reparam.errors import OptionError, TrainError
from reparam.modes import evaluating
from reparam.train.hooks import Hooked

#: Keeps a teacher's output that is constant from making its loss infinite.
_LEAST_VARIANCE = 1e-6


def mse_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns mean((s - t)**2) / var(t): 0 for equal features, 1 for the best constant. The mean runs over all values.

    Features are compared value by value, so their scale and offset count: what reads them was trained for these.
    """
    s, t = student.float(), teacher.detach().float()
    return (s - t).square().mean() / _variance(t)


def kernel_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compares how alike the images of a batch are to the student and to the teacher, each measured by a kernel.

        d_ij = ||f_i - f_j||**2                   f_i: the features of image i, flattened
        k_ij = exp(-d_ij / (2 * mean(d)))         i < j
        loss = mean((k_ij(s) - k_ij(t))**2) / var(k_ij(t))

    0 for the same likenesses, 1 for a student to which all pairs are equally alike. A shift, a rotation, or a common
    factor of the features changes nothing, so features of another distribution, such as an adder layer's negative
    distances, need not become a convolution's. The bandwidth, mean(d), is part of the gradient: without it the loss
    would push the scale, on which it does not depend.

    The idea is PKKD's (arXiv:2009.13044): an adder network's features follow another distribution than a convolution's
    and are comparable only after a kernel has mapped both. There the kernel acts on a layer's inputs and weights, its
    values pass a learned linear layer, and the teacher is trained beside the student, from random weights. Here
    nothing is learned, and the teacher is the finished original.

    Raises:
        TrainError: fewer than 3 images, of which there is no second pair.
    """
    if len(student) < 3:
        raise TrainError(
            f'feature_loss = "kernel" compares pairs of images, and a batch of {len(student)} has not two pairs; '
            'give a larger --batch-size or say feature_loss = "mse"'
        )
    s, t = _likeness(student), _likeness(teacher.detach())
    return (s - t).square().mean() / _variance(t)


#: The losses by the name that the setting `feature_loss` has for them.
FEATURE_LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": mse_loss, "kernel": kernel_loss}


class FeatureRecorder(Hooked):
    """Context manager that records what some modules of a model return; its hooks are gone on exit.

    A forward of the model begins a record and `take` ends it, so what a checkpoint recomputes in backward is left out.
    A module that runs more than once counts with its first output; what is no tensor is left out.
    """

    def __init__(self, model: nn.Module, points: Sequence[str]) -> None:
        super().__init__()
        self._model, self._points = model, tuple(points)
        self._found: dict[str, Tensor] = {}
        self._records = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self.take()

    def _set_hooks(self) -> Iterator[RemovableHandle]:
        yield self._model.register_forward_pre_hook(self._begin)
        for point in self._points:
            yield self._model.get_submodule(point).register_forward_hook(self._keep(point))

    def take(self) -> dict[str, Tensor]:
        """Returns point -> output of the last forward, with its gradient graph, and forgets them."""
        found, self._found, self._records = self._found, {}, False
        return found

    def _begin(self, _: nn.Module, __: tuple[Any, ...]) -> None:
        self._found, self._records = {}, True

    def _keep(self, point: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            if self._records and isinstance(output, Tensor) and point not in self._found:
                self._found[point] = _copy(output)

        return after


class FeatureDistillation:
    """The feature loss of a student and its teacher at some points.

    Args:
        student: the model itself, not a container such as DDP's; its hooks work inside one.
        teacher: the dense original.
        points: what `feature_points` gave.
        loss: a name in `FEATURE_LOSSES`.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, points: Sequence[str], *, loss: str) -> None:
        self._recorders = FeatureRecorder(student, points), FeatureRecorder(teacher, points)
        self._points, self._loss = tuple(points), FEATURE_LOSSES[loss]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Records inside; the forwards of both models must lie there."""
        student, teacher = self._recorders
        with student, teacher:
            yield

    def loss(self) -> Tensor:
        """Returns the mean over the points of the loss of the last forward of each model, a scalar in float32."""
        student, teacher = (recorder.take() for recorder in self._recorders)
        device = student[self._points[0]].device
        with torch.autocast(device.type, enabled=False):
            return torch.stack([self._loss(student[point], teacher[point]) for point in self._points]).mean()


def feature_points(
    student: nn.Module, teacher: nn.Module, paths: Sequence[str], *, images: Tensor, kind: str
) -> tuple[str, ...]:
    """Returns where features can be compared, in the order of `paths`.

    A point is a module that both models have and that returns one tensor per image, of one shape in both. The model
    itself is none: its output are the logits.

    Args:
        student: the converted model.
        teacher: the dense original.
        paths: the converted sites.
        images: at least two, for one run of each model (B, C, H, W); their content does not matter.
        kind: "blocks" for the modules that hold the sites, "sites" for the sites themselves.

    Raises:
        OptionError: there is no such point.
    """
    wanted = dict.fromkeys(path if kind == "sites" else path.rpartition(".")[0] for path in paths)
    shared = [path for path in wanted if path and all(_has(model, path) for model in (student, teacher))]
    shapes = [_shapes(model, shared, images) for model in (student, teacher)]
    points = tuple(path for path in shared if path in shapes[0] and shapes[0][path] == shapes[1].get(path))
    if not points:
        other = "sites" if kind == "blocks" else "blocks"
        raise OptionError(
            f'feature_loss_weight: feature_points = "{kind}" finds no module at the {len(paths)} converted sites of '
            "this stage that gives one tensor per image, of the same shape, in the original and in the converted "
            f'model. Try feature_points = "{other}", or set feature_loss_weight to 0.'
        )
    return points


def _likeness(features: Tensor) -> Tensor:
    """The kernel of each pair of different images, (B * (B - 1) / 2,), in float32."""
    flat = features.float().flatten(1)
    flat = flat - flat.mean(dim=0)  # distances stay, and lose fewer digits to the subtraction below
    products = flat @ flat.T
    squares = products.diagonal()
    distances = (squares[:, None] + squares[None, :] - 2 * products).clamp_min(0)
    rows, columns = torch.triu_indices(len(flat), len(flat), offset=1, device=flat.device)
    pairs = distances[rows, columns]
    return torch.exp(-pairs / (2 * pairs.mean()).clamp_min(_LEAST_VARIANCE))


def _variance(target: Tensor) -> Tensor:
    return target.var(correction=0).clamp_min(_LEAST_VARIANCE)


def _copy(output: Tensor) -> Tensor:
    """A copy, for an activation in place may follow; of a tensor born in inference mode, one that backward can save."""
    if not output.is_inference():
        return output.clone()
    with torch.inference_mode(mode=False):
        return output.clone()


def _has(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


def _shapes(model: nn.Module, points: Sequence[str], images: Tensor) -> dict[str, torch.Size]:
    """The shape of each point's output where that is a tensor with a row per image; the model's mode is kept."""
    # Not inference mode: what a model caches on the way (position tables) must stay usable in training.
    with evaluating(model), torch.no_grad(), FeatureRecorder(model, points) as recorder:
        model(images)
        outputs = recorder.take()
    return {path: output.shape for path, output in outputs.items() if output.ndim > 1 and len(output) == len(images)}
