"""An accelerator that is not there: its tensors compute on the CPU, and refuse what a GPU would refuse or be slow at.

A tensor of the fake device and one of the CPU never meet in an operation (numbers of no dimension may, as on a GPU);
what crosses between the two, and what makes the CPU wait for a number of the device, is counted. Code under test is not
patched: `torch.accelerator`, `torch.device("fake")`, `.to`, autocast and the rest answer as for any accelerator.

torch knows a process's accelerator for good, so this one says that it is not available outside `fake_accelerator()`.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "fake"
_FROM_DATA = (torch.tensor, torch.as_tensor)
# Operations that a GPU can end only by telling the CPU how many results there are, or what they are.
_WAITING = ("aten::nonzero", "aten::_local_scalar_dense", "aten::masked_select", "aten::equal", "aten::_unique2")


class Traffic(NamedTuple):
    """What went between the CPU and the device.

    Fields:
        copies_in, copies_out: to the device, and from it.
        bytes_in, bytes_out: their bytes.
        waits: how often the CPU waited for a number that is not copied, such as `.item()` or the size of a result.
        blocking_in: copies to the device that are not asked for as non_blocking: a GPU first does all it was given.
    """

    copies_in: int
    copies_out: int
    bytes_in: int
    bytes_out: int
    waits: int
    blocking_in: int = 0


class _Counts:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        self.values = dict.fromkeys(Traffic._fields, 0)
        self.held, self.peak, self.limit = 0, 0, None

    def add(self, name: str, number: int = 1) -> None:
        with self.lock:
            self.values[name] += number

    def crossed(self, way: str, tensor: Tensor) -> None:
        self.add(f"copies_{way}")
        self.add(f"bytes_{way}", tensor.numel() * tensor.element_size())

    def allocate(self, number: int) -> None:
        with self.lock:
            if self.limit is not None and number > 0 and self.held + number > self.limit:
                raise torch.OutOfMemoryError(f"{NAME} out of memory: {self.held} + {number} > {self.limit} bytes")
            self.held += number
            self.peak = max(self.peak, self.held)


_counts = _Counts()
_available = False


class _Storage:
    """Counts the bytes of a real tensor's memory while any fake tensor shows it."""

    alive: dict[int, list] = {}  # noqa: RUF012  by address: bytes, number of tensors

    def __init__(self, real: Tensor) -> None:
        storage = real.untyped_storage()
        self._key, number = storage.data_ptr(), storage.nbytes()
        with _counts.lock:
            entry = self.alive.setdefault(self._key, [number, 0])
            entry[1] += 1
            is_new = entry[1] == 1
        if is_new:
            try:
                _counts.allocate(number)
            except torch.OutOfMemoryError:
                entry[0] = 0
                raise

    def __del__(self) -> None:
        with _counts.lock:
            entry = self.alive[self._key]
            entry[1] -= 1
            gone = entry[1] == 0 and self.alive.pop(self._key)
        if gone:
            _counts.allocate(-gone[0])


class FakeTensor(Tensor):
    """A tensor of the fake device; `inside` holds its numbers."""

    @staticmethod
    def __new__(cls, real: Tensor) -> "FakeTensor":
        return Tensor._make_wrapper_subclass(
            cls, real.size(), strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype,
            layout=real.layout, device=torch.device(NAME, 0), requires_grad=real.requires_grad,
        )  # fmt: skip

    def __init__(self, real: Tensor) -> None:
        self.inside, self._storage_count = real, _Storage(real)

    def __repr__(self) -> str:
        return f"FakeTensor({self.inside!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _compute(func, *args, **(kwargs or {}))


def _is_here(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _each_tensor(change: Callable[[Tensor], Any], values: Any) -> Any:
    """`values`, an operation's arguments or results, with every tensor in its lists and tuples changed.

    torch.utils._pytree's tree_map does the same and takes nine tenths of the time of a test.
    """
    if isinstance(values, Tensor):
        return change(values)
    if isinstance(values, list | tuple):
        return type(values)([_each_tensor(change, value) for value in values])
    return values


def _compute(func: Callable, *args: Any, **kwargs: Any) -> Any:
    """Compute an operation on the CPU; its result is on the device if its inputs are, or if it asks for the device."""
    name = func._schema.name
    ours: list[FakeTensor] = []
    others: list[Tensor] = []

    def numbers(leaf: Tensor) -> Tensor:
        (ours if isinstance(leaf, FakeTensor) else others).append(leaf)
        return leaf.inside if isinstance(leaf, FakeTensor) else leaf

    device = kwargs.get("device")
    real = _each_tensor(numbers, args)
    real_options = {key: _each_tensor(numbers, value) for key, value in kwargs.items()}
    if _is_here(device):
        real_options["device"] = torch.device("cpu")
    here = bool(ours) if device is None else _is_here(device)
    if name in ("aten::_to_copy", "aten::copy_", "aten::_copy_from"):
        target, source = (args[0], args[1]) if name == "aten::copy_" else (None, args[0])
        here = isinstance(target, FakeTensor) if target is not None else here
        if here != isinstance(source, FakeTensor):
            _counts.crossed("in" if here else "out", source)
            if here and not kwargs.get("non_blocking", args[2] if name == "aten::copy_" and len(args) > 2 else False):
                _counts.add("blocking_in")
    elif ours and any(other.dim() for other in others):
        shapes = [tuple(other.shape) for other in others if other.dim()]
        raise RuntimeError(f"{name}: a tensor of the CPU, {shapes[0]}, meets tensors of the {NAME} device")
    if ours and name in _WAITING:
        _counts.add("waits")
    if ours and name in ("aten::index", "aten::index_put_") and _indexed_by_mask(args[1]):
        _counts.add("waits")
    result = func(*real, **real_options)
    if not here:
        return result
    if isinstance(result, Tensor) and ours and func._schema.is_mutable:  # in place: the tensor that was given
        for leaf in ours:
            if leaf.inside is result:
                return leaf
    return _each_tensor(FakeTensor, result)


def _indexed_by_mask(indices: Any) -> bool:
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)


class _FromData(TorchFunctionMode):
    """Tensors made of Python's numbers are made on the CPU and copied, as torch does for a GPU.

    Attention is one operation, whose scores are not stored, as on a GPU.
    """

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in _FROM_DATA and _is_here(kwargs.get("device")) and not isinstance(args[0], Tensor):
            return func(*args, **{**kwargs, "device": "cpu"}).to(kwargs["device"])
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], FakeTensor):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(part).to(args[0].device) if isinstance(part, list) else part for part in index)
            return func(args[0], index, *args[2:])
        if func is torch.nn.functional.scaled_dot_product_attention and isinstance(args[0], FakeTensor):
            inside = [leaf.inside if isinstance(leaf, FakeTensor) else leaf for leaf in (*args, *kwargs.values())]
            return FakeTensor(func(*inside[: len(args)], **dict(zip(kwargs, inside[len(args) :], strict=True))))
        if func is Tensor.tolist and isinstance(args[0], FakeTensor):
            return args[0].cpu().tolist()
        return func(*args, **kwargs)


class _Stream:
    """Everything is done at once: streams and events order nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        pass

    wait_stream = record_event = wait_event

    def record(self, stream: Any = None) -> None:
        pass

    def wait(self, stream: Any = None) -> None:
        pass

    def synchronize(self) -> None:
        pass


class _Module:
    """What torch.cuda is to a GPU."""

    Stream = Event = _Stream

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return _available

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return int(_available)

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_device_name(self, device: torch.device) -> str:
        return f"stand-in {torch.device(device).index or 0}"

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        limit = 2**40 if _counts.limit is None else _counts.limit
        return limit - _counts.held, limit

    def max_memory_allocated(self, device: torch.device) -> int:
        return _counts.peak

    def reset_peak_memory_stats(self, device: torch.device) -> None:
        _counts.peak = _counts.held

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class _Hook(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return _available

    def has_primary_context(self, index: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


def _register() -> None:
    _setup_privateuseone_for_python_backend(NAME, _Module(), _Hook())
    library = torch.library.Library("_", "IMPL")
    library.fallback(_compute, "PrivateUse1")
    library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")  # autocast is accepted, and casts nothing
    _registered.append(library)  # it is undone when the library goes


_registered: list[torch.library.Library] = []


class Meter:
    """Reads what went between the CPU and the device, and the device's memory, since it was made or last reset."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        with _counts.lock:
            held, limit = _counts.held, _counts.limit
            _counts.clear()
            _counts.held = _counts.peak = held
            _counts.limit = limit

    @property
    def traffic(self) -> Traffic:
        return Traffic(**_counts.values)

    @property
    def peak_bytes(self) -> int:
        return _counts.peak

    @property
    def held_bytes(self) -> int:
        return _counts.held

    def limit(self, number: int | None) -> None:
        """From now on the device has so many bytes; what needs more raises OutOfMemoryError, as on a GPU."""
        _counts.limit = number


@contextmanager
def fake_accelerator() -> Iterator[Meter]:
    """Inside, the process has one accelerator, `torch.device("fake")`; yields a meter of its traffic and memory."""
    global _available
    if not _registered:
        _register()
    _available = True
    try:
        with _FromData(), torch.no_grad():
            yield Meter()
    finally:
        _available = False
        _counts.limit = None
