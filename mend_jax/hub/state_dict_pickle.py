"""Reads the pickle of a PyTorch state dict without running it.

A pickle is a program that may call any Python function. Here its instructions are interpreted one
by one: it may build dicts, lists, tuples, numbers and texts, and it may name what a dict of tensors
needs. Nothing that it names is imported or called; tensors become descriptions of where their
numbers are.
"""

from __future__ import annotations

import dataclasses
import math
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

STORAGE_DTYPES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL",
}  # fmt: skip
"""A storage class of torch -> the name of its type in safetensors files."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of numbers in the file, which tensors may share.

    Attributes:
      key: its name in the file.
      dtype: the safetensors name of its type.
      size: how many numbers it has.
    """

    key: str
    dtype: str
    size: int


@dataclasses.dataclass(frozen=True)
class PickledTensor:
    """Where the numbers of a tensor are; offset and strides are counted in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class RefusedGlobal(ValueError):
    """The pickle names something that a dict of tensors does not need, as `module.name`."""


@dataclasses.dataclass(frozen=True)
class _Global:
    """Something that the pickle names; only its name is kept."""

    name: str


_MARK = object()
_MOST_AXES = 32


def read_pickle(stream: BinaryIO) -> Any:
    """Return the value of one pickle; the stream then stands behind it.

    Tensors are `PickledTensor`; an OrderedDict is a dict, and its attributes are dropped.

    Args:
      stream: with read and readline, such as BytesIO or mmap.

    Raises:
      RefusedGlobal: it names anything but tensors, their storages and OrderedDict.
      ValueError: it is damaged, or uses an instruction that a dict of tensors does not need.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except (IndexError, KeyError, TypeError, AttributeError, MemoryError, OverflowError) as error:
        raise ValueError(f"its pickle is damaged ({type(error).__name__}: {error})") from error
    raise ValueError("its pickle has no end")


class _Machine:
    """The stack and the memo of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        values = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def step(self, name: str, argument: Any) -> None:
        """Carry out one instruction."""
        if name in _IGNORED:
            return
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _TUPLES:
            count = _TUPLES[name]
            values = self.stack[len(self.stack) - count :] if count else []
            if len(values) < count:
                raise IndexError("the stack is empty")
            del self.stack[len(self.stack) - count :]
            self.stack.append(tuple(values))
        elif name in _STEPS:
            _STEPS[name](self, argument)
        else:
            raise ValueError(f"its pickle has the instruction {name}, which no state dict needs")


def _set_items(machine: _Machine, values: list[Any]) -> None:
    target = machine.stack[-1]
    keys = values[::2]
    if type(target) is not dict or len(values) % 2 or not all(type(k) is str for k in keys):
        raise TypeError("items that are not of a dict with texts as keys")
    target.update(zip(keys, values[1::2], strict=True))


def _append(machine: _Machine, values: list[Any]) -> None:
    if type(machine.stack[-1]) is not list:
        raise TypeError("elements that are not of a list")
    machine.stack[-1].extend(values)


def _last_two(machine: _Machine) -> list[Any]:
    second, first = machine.pop(), machine.pop()
    return [first, second]


def _store(machine: _Machine, place: int) -> None:
    machine.memo[place] = machine.stack[-1]


def _push_global(machine: _Machine, name: str) -> None:
    module, _, rest = name.rpartition(".")
    if name not in _CALLS and not (module == "torch" and rest in STORAGE_DTYPES):
        raise RefusedGlobal(name)
    machine.stack.append(_Global(name))


def _stack_global(machine: _Machine, _: None) -> None:
    _push_global(machine, ".".join(_last_two(machine)))


def _reduce(machine: _Machine, _: None) -> None:
    called, arguments = _last_two(machine)
    if type(called) is not _Global or called.name not in _CALLS or type(arguments) is not tuple:
        raise TypeError("a call of something that cannot be called")
    machine.stack.append(_CALLS[called.name](*arguments))


def _build(machine: _Machine, _: None) -> None:
    """Drop the attributes of an OrderedDict: the versions of its modules."""
    target, _state = _last_two(machine)
    if type(target) is not dict:
        raise TypeError("attributes that are not of an OrderedDict")
    machine.stack.append(target)


def _storage(machine: _Machine, _: None) -> None:
    kind, of, key, _device, size, *view = machine.pop()
    known = type(of) is _Global and STORAGE_DTYPES.get(of.name.rpartition(".")[2])
    if kind != "storage" or not known or type(key) is not str or not _is_size(size):
        raise TypeError("a reference to something that is not a storage")
    if any(v is not None for v in view):
        raise ValueError("a storage that is a view of another one: save the file with torch again")
    machine.stack.append(Storage(key, known, size))


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, _requires_grad: Any = False, *_: Any
) -> PickledTensor:
    if type(storage) is not Storage or type(shape) is not tuple or type(strides) is not tuple:
        raise TypeError("a tensor without storage, shape or strides")
    sizes = (offset, *shape, *strides)
    if len(shape) != len(strides) or len(shape) > _MOST_AXES or not all(map(_is_size, sizes)):
        raise TypeError(f"a tensor of shape {shape!r:.80} with strides {strides!r:.80}")
    count = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if count and (last >= storage.size or count > storage.size):
        raise ValueError(
            f"a tensor of shape {list(shape)} with strides {list(strides)} does not fit into its "
            f"storage of {storage.size} numbers"
        )
    return PickledTensor(storage, offset, shape, strides)


def _parameter(tensor: Any, *_: Any) -> PickledTensor:
    if type(tensor) is not PickledTensor:
        raise TypeError("a parameter that is not a tensor")
    return tensor


def _ordered_dict(pairs: Any = ()) -> dict[str, Any]:
    made = {key: value for key, value in pairs}
    if not all(type(key) is str for key in made):
        raise TypeError("an OrderedDict whose keys are not texts")
    return made


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


_CALLS: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "collections.OrderedDict": _ordered_dict,
}
"""What a pickle may call, and what is done instead."""

_IGNORED = ("PROTO", "FRAME")
_LITERALS = (
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
)  # fmt: skip
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "MARK": lambda: _MARK,
}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_STEPS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_to_mark())),
    "SETITEM": lambda machine, _: _set_items(machine, _last_two(machine)),
    "SETITEMS": lambda machine, _: _set_items(machine, machine.pop_to_mark()),
    "APPEND": lambda machine, _: _append(machine, [machine.pop()]),
    "APPENDS": lambda machine, _: _append(machine, machine.pop_to_mark()),
    "BINPUT": _store,
    "LONG_BINPUT": _store,
    "MEMOIZE": lambda machine, _: _store(machine, len(machine.memo)),
    "BINGET": lambda machine, place: machine.stack.append(machine.memo[place]),
    "LONG_BINGET": lambda machine, place: machine.stack.append(machine.memo[place]),
    "GLOBAL": lambda machine, name: _push_global(machine, name.replace(" ", ".", 1)),
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "BUILD": _build,
    "BINPERSID": _storage,
}
