"""Tensors of a launch as its kernel addresses them, and the check that every access lies in the one it began at.

A kernel is given addresses that are not those of memory: every tensor has a stretch of its own, far from the others, so
that an address tells which tensor it was computed from. What lies within the tensor (views and strides counted) is
translated to memory; anything else is a fault, and is neither read nor written.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .findings import Kind

APART = np.uint64(44)
"""Tensors begin 2 ** APART bytes from one another, whatever their sizes."""
HALF = np.uint64(1 << 43)
PAGE = 4096
"""Addresses keep their remainder by this, and so their alignment."""

Complaint = tuple[Kind, str, str]
"""Kind of a fault, the parameter that it concerns, and a text."""


@dataclass(frozen=True, eq=False)
class Place:
    """A tensor of a launch.

    Attributes:
        name: parameter of the kernel that it was handed over for.
        tensor: the tensor.
        address: where the kernel is told that it begins.
        memory: where it begins.
        num_bytes: bytes from its first element to the end of its last, those between its rows included.
        filled: for every element of that stretch, whether it belongs to the tensor; None: all do.
    """

    name: str
    tensor: Tensor
    address: int
    memory: int
    num_bytes: int
    filled: np.ndarray | None

    def outside(self, offsets: np.ndarray, size: int) -> np.ndarray:
        """Say which accesses of `size` bytes, at offsets in bytes (below 0: very large ones), leave the tensor."""
        outside = offsets > np.uint64(max(0, self.num_bytes - size))
        if self.num_bytes < size:
            outside[:] = True
        if self.filled is not None:
            element, inside = self.tensor.element_size(), np.where(outside, 0, offsets)
            for byte in range(0, size, element):
                outside |= ~self.filled[(inside + np.uint64(byte)) // np.uint64(element)]
        return outside

    def __str__(self) -> str:
        dtype, shape, strides = str(self.tensor.dtype)[6:], list(self.tensor.shape), list(self.tensor.stride())
        return f"{self.name}, {dtype} {shape}" + ("" if self.tensor.is_contiguous() else f" of strides {strides}")


@dataclass(frozen=True, eq=False)
class Access:
    """Sound part of a load or store: what it touches of one tensor.

    Attributes:
        place: the tensor.
        offsets: byte at which each access begins, in the tensor.
        lanes: position in the block of each access.
        block: shape of the block.
        size: bytes of each access.
    """

    place: Place
    offsets: np.ndarray
    lanes: np.ndarray
    block: tuple[int, ...]
    size: int


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of an argument of a kernel."""
    if isinstance(value, tuple):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, TensorDescriptor):
        yield from tensors_in(value.base)
    elif isinstance(value, Tensor):
        yield value
    elif hasattr(value, "data_ptr"):
        raise NotImplementedError(f"a {type(value).__name__} would go unchecked: teach it to {__name__}.tensors_in")


class Tensors:
    """All tensors of one launch."""

    def __init__(self, arguments: Iterable[tuple[str, Any]]) -> None:
        self.places: list[Place] = []
        self._by_key: dict[Any, Place] = {}
        names: dict[Any, list[str]] = {}
        found = {}
        for name, value in arguments:
            for tensor in tensors_in(value):
                names.setdefault(_key(tensor), []).append(name)
                found[_key(tensor)] = tensor
        for number, (key, tensor) in enumerate(found.items(), 1):
            self._by_key[key] = place = _placed(" and ".join(names[key]), tensor, number)
            self.places.append(place)

    def address_of(self, tensor: Tensor) -> int:
        """Return the address by which the kernel knows a tensor."""
        return self._by_key[_key(tensor)].address

    def find(
        self, pointers: np.ndarray, mask: np.ndarray, size: int
    ) -> tuple[np.ndarray, np.ndarray, list[Access], list[Complaint]]:
        """Translate the pointers of one load or store.

        Args:
            pointers: addresses as the kernel computed them, in the shape of its block.
            mask: elements of the block that are accessed.
            size: bytes of each.

        Returns:
            Addresses in memory; which of them may be accessed; what is accessed, tensor by tensor; and the faults.
        """
        lanes = np.flatnonzero(mask)
        chosen = pointers.reshape(-1)[lanes]
        memory, allowed = np.zeros(pointers.size, np.uint64), np.zeros(pointers.size, bool)
        accesses, faults = [], []
        numbers = ((chosen + HALF) >> APART).astype(np.int64)
        while len(lanes):
            of_first = numbers == numbers[0]
            own_lanes, own = (lanes, chosen) if of_first.all() else (lanes[of_first], chosen[of_first])
            if 1 <= numbers[0] <= len(self.places):
                place = self.places[numbers[0] - 1]
                offsets = own - np.uint64(place.address)
                outside = place.outside(offsets, size)
                odd = own % np.uint64(size) != 0
                if outside.any():
                    faults.append((Kind.OUTSIDE, place.name, _how_far(place, offsets[outside], len(own), size)))
                if odd.any():
                    told = f"{place}: {odd.sum()} of {len(own)} accesses of {size} bytes"
                    faults.append((Kind.MISALIGNED, place.name, told))
                if (outside | odd).any():
                    sound = ~(outside | odd)
                    own_lanes, offsets = own_lanes[sound], offsets[sound]
                memory[own_lanes], allowed[own_lanes] = offsets + np.uint64(place.memory), True
                if len(own_lanes):
                    accesses.append(Access(place, offsets.astype(np.int64), own_lanes, pointers.shape, size))
            else:
                faults.append((Kind.STRANGER, "", f"{len(own)} elements, the first at {own[0]:#x}"))
            lanes, chosen, numbers = lanes[~of_first], chosen[~of_first], numbers[~of_first]
        return memory.reshape(pointers.shape), allowed.reshape(pointers.shape), accesses, faults


def _key(tensor: Tensor) -> Any:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _placed(name: str, tensor: Tensor, number: int) -> Place:
    memory, element = tensor.data_ptr(), tensor.element_size()
    address = (number << int(APART)) + memory % PAGE
    if not tensor.numel():
        return Place(name, tensor, address, memory, 0, None)
    axes = [(size, stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1 and stride]
    span = 1 + sum((size - 1) * stride for size, stride in axes)
    filled = np.zeros(span, bool)
    shape, strides = [size for size, _ in axes], [stride for _, stride in axes]
    np.lib.stride_tricks.as_strided(filled, shape, strides)[...] = True
    return Place(name, tensor, address, memory, span * element, None if filled.all() else filled)


def _how_far(place: Place, offsets: np.ndarray, count: int, size: int) -> str:
    """Describe the first of the accesses outside a tensor."""
    first = int(offsets.astype(np.int64)[0])
    if first < 0:
        where = f"{-first} bytes before its start"
    elif first + size <= place.num_bytes:
        where = f"byte {first}, between its rows"
    else:
        where = f"{first + size - place.num_bytes} bytes past its end"
    return f"{place}: {len(offsets)} of {count} elements, the first {where}"
