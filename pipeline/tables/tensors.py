"""The safetensors container: named arrays as bytes, and any of them read back without the others.

Eight bytes say how long the header is; the header is JSON of type, shape and place of every tensor; the tensors follow,
without gaps. What is read here is not trusted: a place outside the file, or a shape that does not fit it, is an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.numpy import save

from pipeline.tables.schema import TableError
from pipeline.tables.storage import patiently

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 2**24  # a hundred thousand tensors; an 8-byte number from a damaged file could be anything
_NEAR_BYTES = 2**16  # tensors this close are one read: a request to a store costs as much as a megabyte
_TYPES = {
    "BOOL": np.dtype("?"),
    **{f"{kind}{8 * size}": np.dtype(f"<{kind.lower()}{size}") for kind in "IU" for size in (1, 2, 4, 8)},
    **{f"F{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
    "C64": np.dtype("<c8"),
}


@dataclass(frozen=True)
class Slot:
    """Where in a file a tensor is, and what it is."""

    name: str
    kind: np.dtype
    shape: tuple[int, ...]
    begin: int  # bytes from the beginning of the file
    end: int

    def tensor(self, content: pa.Buffer) -> np.ndarray:
        """The tensor from its bytes: a read-only view."""
        return np.frombuffer(content, self.kind).reshape(self.shape)


def pack(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The whole file. Raises TableError if a tensor has a type that safetensors lacks."""
    ordered = {name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}  # safetensors ignores strides
    try:
        return bytes(save(ordered))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        types = {name: str(tensor.dtype) for name, tensor in ordered.items()}
        raise TableError(
            f"Tensors of types {types} cannot be stored ({error}); use floats, integers or bools."
        ) from error


def read_header(source: pa.NativeFile) -> bytes:
    """Length and header as they are in the file, checked by `slots` only."""
    length = bytes(_read(source, 0, _LENGTH_BYTES))
    header = min(int.from_bytes(length, "little"), _MAX_HEADER_BYTES, max(source.size() - _LENGTH_BYTES, 0))
    return length + (bytes(_read(source, _LENGTH_BYTES, header)) if header else b"")


def slots(header: bytes, size: int) -> list[Slot]:
    """The tensors of a file of `size` bytes, in the order of their places. Raises ValueError for a damaged header."""
    begin = _LENGTH_BYTES + int.from_bytes(header[:_LENGTH_BYTES], "little")
    if len(header) != begin:
        raise ValueError(f"its header should have {begin} bytes of {size} but {len(header)} can be read")
    try:
        stored = json.loads(header[_LENGTH_BYTES:])
        found = [_slot(name, each, begin) for name, each in stored.items() if name != "__metadata__"]
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"its header is damaged ({type(error).__name__}: {error})") from error
    found.sort(key=lambda slot: (slot.begin, slot.end))
    edges = [begin, *(slot.end for slot in found)]
    if [slot.begin for slot in found] != edges[:-1] or edges[-1] != size:
        raise ValueError(f"its {len(found)} tensors do not fill its {size} bytes without gaps")
    return found


def read_slots(source: pa.NativeFile, wanted: Sequence[Slot]) -> Iterator[tuple[Slot, pa.Buffer]]:
    """The bytes of the `wanted` tensors, which are in the order of their places; near ones share a read."""
    run: list[Slot] = []
    for slot in wanted:
        if run and slot.begin - run[-1].end > _NEAR_BYTES:
            yield from _read_run(source, run)
            run = []
        run.append(slot)
    yield from _read_run(source, run)


def _read_run(source: pa.NativeFile, run: Sequence[Slot]) -> Iterator[tuple[Slot, pa.Buffer]]:
    if not run:
        return
    content = _read(source, run[0].begin, run[-1].end - run[0].begin)
    for slot in run:
        yield slot, content.slice(slot.begin - run[0].begin, slot.end - slot.begin)


def _read(source: pa.NativeFile, begin: int, length: int) -> pa.Buffer:
    def read() -> pa.Buffer:
        source.seek(begin)
        return source.read_buffer(length)

    return patiently(read)


def _slot(name: str, stored: Any, begin: int) -> Slot:
    kind, shape, (first, last) = stored["dtype"], tuple(stored["shape"]), stored["data_offsets"]
    if kind not in _TYPES:
        raise ValueError(f"tensor {name!r} has the unknown type {kind!r}")
    if any(type(each) is not int or each < 0 for each in (*shape, first, last)):
        raise ValueError(f"tensor {name!r} has the shape {shape} at {first} to {last}")
    if math.prod(shape) * _TYPES[kind].itemsize != last - first:
        raise ValueError(f"tensor {name!r} of shape {shape} and type {kind} does not fit {last - first} bytes")
    return Slot(name, _TYPES[kind], shape, begin + first, begin + last)
