"""Runs a model once on the meta device under a recorder that keeps every operation with its module call stack.

A model that reads values of tensors cannot run there; it runs as a copy on values instead, and the record says so.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from reparam.copying import meta_copy, to_meta
from reparam.errors import ModelError, first_line
from reparam.trace.layouts import run
from reparam.trace.record import ModuleCall, Op, Ref, Trace
from reparam.trace.values import (
    arguments_with_values,
    forget_values_,
    may_change,
    needs_values,
    reads_values,
    unseen,
    with_values,
)

ExampleInput = Tensor | tuple[Any, ...]


class Recorder(TorchFunctionMode):
    """Writes each torch function that returns tensors into a `Trace`, with the modules whose forward is running."""

    def __init__(self) -> None:
        super().__init__()
        self.trace = Trace()
        self.stack: list[str] = []
        self.tag: Any = None
        self._refs: dict[int, Ref] = {}

    def name_state(self, module: nn.Module) -> None:
        """Gives the parameters and buffers of `module` their dotted names in the trace."""
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            self._new_ref(tensor, name)

    def know_values(self, module: nn.Module, original: nn.Module) -> None:
        """Notes what the buffers and tensor attributes of `module` contain in the model that it is a copy of."""
        originals = dict(original.named_modules())
        for path, part in module.named_modules():
            for name, tensor in _plain_tensors(part).items():
                value = _plain_tensors(originals[path]).get(name) if path in originals else None
                if value is not None and not value.is_meta:
                    self.trace.known[self.ref(tensor).number] = value

    def ref(self, tensor: Tensor) -> Ref:
        """The record's name for a tensor, made on first sight."""
        return self._refs.get(id(tensor)) or self._new_ref(tensor)

    def refs(self, tree: Any) -> tuple[Ref, ...]:
        """The record's names for all tensors in a nested structure."""
        return tuple(self.ref(leaf) for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor))

    def _new_ref(self, tensor: Tensor, name: str | None = None) -> Ref:
        ref = Ref(len(self.trace.tensors), tuple(tensor.shape), name)
        self.trace.tensors.append(tensor)
        self._refs[id(tensor)] = ref
        return ref

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # Operands are named before the call, because an in-place function returns one of them.
        leaves, structure = pytree.tree_flatten((tuple(args), dict(kwargs)))
        named = [self.ref(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        named_args, named_kwargs = pytree.tree_unflatten(named, structure)
        inputs = tuple(leaf for leaf in named if isinstance(leaf, Ref))
        if self.stack and reads_values(func, args) and may_change(self.trace, inputs):
            self.trace.reads.setdefault(self.stack[-1], set()).add(_name(func))
        result = run(func, args, kwargs)
        if func is Tensor.__iter__:
            result = list(result)  # `q, k, v = qkv`: the items are the outputs, not the iterator
        # An assignment to elements returns nothing; what it wrote to holds another value from here on.
        written = args[:1] if func is Tensor.__setitem__ else result
        made = [written] if isinstance(written, Tensor) else pytree.tree_leaves(written)
        outputs = [leaf for leaf in made if isinstance(leaf, Tensor)]
        if outputs:
            op = Op(
                index=len(self.trace.ops), name=_name(func), function=func, args=named_args, kwargs=named_kwargs,
                inputs=inputs, outputs=tuple(self._fresh(tensor) for tensor in outputs),
                stack=tuple(self.stack), tag=self.tag,
            )  # fmt: skip
            self.trace.add(op)
        return iter(result) if func is Tensor.__iter__ else result

    def _fresh(self, tensor: Tensor) -> Ref:
        known = self._refs.get(id(tensor))
        return known if known is not None and known.name is not None else self._new_ref(tensor)


def _plain_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's own tensors that are no parameters."""
    own = {**module._buffers, **vars(module)}
    return {name: value for name, value in own.items() if isinstance(value, Tensor)}


def _name(function: Any) -> str:
    name: str = getattr(function, "__name__", type(function).__name__)
    if name == "__get__":
        name = getattr(function.__self__, "__name__", name)
    return name.strip("_").removesuffix("_")


@contextmanager
def watch_modules(model: nn.Module, recorder: Recorder) -> Iterator[None]:
    """While open, calls of `model`'s modules are kept in the recorder's stack and trace."""
    open_calls: list[tuple[tuple[Ref, ...], int]] = []
    handles = []

    def enter(path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            recorder.stack.append(path)
            open_calls.append((recorder.refs((args, kwargs)), len(recorder.trace.ops)))

        return hook

    def leave(path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            recorder.stack.pop()
            inputs, first_op = open_calls.pop()
            call = ModuleCall(
                path=path, args=tuple(args), kwargs=dict(kwargs), inputs=inputs, outputs=recorder.refs(result),
                first_op=first_op, end_op=len(recorder.trace.ops), is_training=module.training,
            )  # fmt: skip
            recorder.trace.calls.append(call)

        return hook

    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(path), prepend=True, with_kwargs=True))
        handles.append(module.register_forward_hook(leave(path), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def as_arguments(example_input: ExampleInput) -> tuple[Any, ...]:
    """The positional arguments that an example input stands for."""
    return example_input if isinstance(example_input, tuple) else (example_input,)


def probe(
    model: nn.Module, example_input: ExampleInput, *, training: bool = False, original: nn.Module | None = None
) -> Trace:
    """Runs a meta copy of `model` once and returns the record; the model itself is not touched.

    A model that needs values runs as a copy on its own weights and the example input, or on seeded random numbers where
    these have none; then `unseen` says what the record does not show.

    Args:
        model: any module.
        example_input: a tensor, or a tuple of positional arguments; for most models only shapes and dtypes matter.
        training: the mode in which the copy runs.
        original: the model that `model` is a copy of without values, for what its buffers contain; `model` by default.
    Raises:
        ModelError: the model cannot run on the example input.
    """
    given = as_arguments(example_input)
    args = pytree.tree_map_only(Tensor, to_meta, given)
    try:
        return _record(meta_copy(model).train(training), args, original or model)
    except Exception as error:
        if not needs_values(error):
            raise ModelError(_cannot_run(model, args, error)) from error
        reason = first_line(error)
    duplicate = with_values(model).train(training)
    try:
        trace = _record(duplicate, arguments_with_values(given, like=duplicate), original or model)
    except Exception as error:
        raise ModelError(_cannot_run(model, args, error)) from error
    forget_values_(trace)
    trace.unseen = unseen(trace, reason)
    return trace


def _record(model: nn.Module, args: tuple[Any, ...], original: nn.Module) -> Trace:
    recorder = Recorder()
    recorder.name_state(model)
    recorder.know_values(model, original)
    recorder.trace.inputs = recorder.refs(args)
    # What a forward draws on the CPU must not come out of the user's random numbers.
    with torch.no_grad(), torch.random.fork_rng(devices=[]), watch_modules(model, recorder), recorder:
        result = model(*args)
    recorder.trace.outputs = recorder.refs(result)
    return recorder.trace


def _cannot_run(model: nn.Module, args: tuple[Any, ...], error: Exception) -> str:
    shapes = ", ".join(str(tuple(a.shape)) if isinstance(a, Tensor) else repr(a) for a in args)
    return (
        f"{type(model).__name__} cannot run on the example input {shapes}: {first_line(error)}. "
        "Pass an example input that the model takes."
    )
