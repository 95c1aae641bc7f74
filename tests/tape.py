"""CUDA graphs without CUDA: what a graph would record, played back on the CPU under the same rules.

A captured graph holds kernels with the addresses and numbers they had. Whatever else changes between two replays (host counts,
tensors made anew) it does not see, kernels do not run while they are captured, what it made for itself is gone by the next
replay, and nothing in it may wait for the device. The tape does all of this, so a step that it replays rightly is one that a
graph can.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal, aten.allclose, aten.nonzero, aten.argwhere,
    aten.masked_select, aten._unique2, aten.unique_consecutive, aten.lift_fresh,
}  # fmt: skip
"""Values that come to the host, shapes that depend on them, and constants that come from it."""


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class Tape:
    """In the place of torch.cuda.CUDAGraph."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.made: list[Tensor] = []
        """What calls returned in memory of their own."""
        self.pool: list[Tape] = []
        """All that share that memory."""

    def forget(self) -> None:
        for tensor in self.made:
            tensor.fill_(torch.nan if tensor.is_floating_point() else 1)

    def replay(self) -> None:
        for tape in self.pool:
            tape.forget()
        for call, arguments, keywords, recorded in self.calls:
            found = tensors(call(*arguments, **keywords))
            for old, new in zip(recorded, found, strict=True):
                if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)


class Recorder(TorchDispatchMode):
    """Writes a tape; what it changes in memory that was there before is undone in the end, as if nothing had run."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        self.own: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        boolean = [part for part in tensors(args[1:2]) if part.dtype is torch.bool] if func.__name__.startswith("index") else []
        if func.overloadpacket in WAITS or boolean:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        for argument, value in (*zip(func._schema.arguments, args, strict=False), *self.named(func, kwargs)):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.keep(value)
        given = {tensor.untyped_storage().data_ptr() for tensor in tensors((args, kwargs))}
        out = func(*args, **kwargs)
        recorded = tensors(out)
        for tensor in recorded:
            if tensor.untyped_storage().data_ptr() not in given:
                self.own.add(tensor.untyped_storage().data_ptr())
                self.tape.made.append(tensor)
        self.tape.calls.append((func, args, kwargs, recorded))
        return out

    @staticmethod
    def named(func: Any, kwargs: dict[str, Any]) -> list[tuple[Any, Any]]:
        return [(argument, kwargs[argument.name]) for argument in func._schema.arguments if argument.name in kwargs]

    def keep(self, tensor: Tensor) -> None:
        address = tensor.untyped_storage().data_ptr()
        if address not in self.own and address not in self.before:
            whole = tensor.new_empty(0).set_(tensor.untyped_storage())  # type: ignore[call-overload]
            self.before[address] = whole, whole.clone()

    def undo(self) -> None:
        for tensor, was in self.before.values():
            tensor.copy_(was)


@contextmanager
def record(tape: Tape, pool: list[Tape]) -> Iterator[None]:
    """In the place of torch.cuda.graph."""
    pool.append(tape)
    tape.pool = pool
    recorder = Recorder(tape)
    try:
        with recorder:
            yield
    finally:
        recorder.undo()
        tape.forget()


@pytest.fixture
def taped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are tapes."""
    monkeypatch.setattr("edgemllm.cache.attention.straight", lambda model: None)  # a GPU does not take the short way of a CPU
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Tape)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", list)
