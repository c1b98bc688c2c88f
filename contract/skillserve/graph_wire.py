"""Reads the skeleton of an ONNX file: which operators it names, and where its tensors lie.

A walk over protobuf's wire format with the standard library alone, since a serving process may not have `onnx`, and
since a file that is not trusted yet should meet as little code as possible. Tensor contents are stepped over, so a
model of gigabytes costs no memory. Nothing in the file is believed: every length is compared with what is there,
nesting and the number of parts are bounded.

Field numbers are those of onnx/onnx.proto, wire types those of protobuf's encoding guide.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

__all__ = ["MalformedGraph", "Skeleton", "TensorPlace", "read_skeleton"]

Kind = Literal["model", "graph", "node", "attribute", "tensor", "sparse", "function"]

_CHILDREN: dict[Kind, dict[int, Kind]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "function": {7: "node", 11: "attribute"},
    "tensor": {},
}
"""Message → field → the message in it; other fields are stepped over."""

_NODE_OPERATOR, _NODE_DOMAIN = 4, 7
_MODEL_TRAINING = 20
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 8, 9, 13, 14
_KEY, _VALUE = 1, 2
_EXTERNAL = 1

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_MOST_VARINT_BYTES = 10
_MOST_NAME_BYTES = 4_096
"""Longest operator, domain, tensor name or external-data entry that is read."""
_MOST_DEPTH = 48
"""Messages inside messages. A loop costs three, our graphs nest two of them; protobuf itself stops at 100."""
MOST_PARTS = 4_000_000
"""Fields that are looked at. A model of 36 layers has some hundred thousand; more would only keep us busy."""

_BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
"""TensorProto.DataType → bits of one element; strings (8) have no fixed size."""


class MalformedGraph(ValueError):
    """The bytes are no ONNX model, or one that says two things at once; the message says where."""


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """A tensor whose numbers lie in another file."""

    name: str
    entries: dict[str, str]
    """`location`, `offset`, `length` and whatever else its external_data says."""
    num_bytes: int
    """What its shape and type need."""


@dataclass(slots=True)
class Skeleton:
    """What matters of a model before anybody loads it."""

    operators: set[tuple[str, str]] = field(default_factory=set)
    """Domain and name of every operator, those of subgraphs and functions included."""
    external: list[TensorPlace] = field(default_factory=list)
    num_nodes: int = 0


@dataclass(slots=True)
class _Tensor:
    """One tensor while it is read."""

    dims: list[int] = field(default_factory=list)
    data_type: int = 0
    name: str = ""
    raw_bytes: int | None = None
    entries: dict[str, str] = field(default_factory=dict)
    external: bool = False


_Field = tuple[int, int, int, int]
"""Number, wire type, then the value's bounds in the file, or the value itself twice if it is a varint."""


def read_skeleton(file: BinaryIO, size: int) -> Skeleton:
    """Walk through a model of `size` bytes; raises MalformedGraph."""
    walk = _Walk(file)
    walk.message("model", 0, size, 0)
    if not walk.found.num_nodes:
        raise MalformedGraph("no operator in it")
    return walk.found


class _Walk:
    def __init__(self, file: BinaryIO) -> None:
        self.found = Skeleton()
        self._file = file
        self._parts = 0

    def message(self, kind: Kind, start: int, end: int, depth: int) -> None:
        if depth > _MOST_DEPTH:
            raise MalformedGraph(f"messages nested more than {_MOST_DEPTH} deep")
        if kind == "tensor":
            self._tensor(start, end)
            return
        if kind == "node":
            self.found.num_nodes += 1
        children = _CHILDREN[kind]
        domain = operator = ""
        for number, wire, low, high in self._fields(start, end):
            if number in children:
                self._want(wire, _BYTES, f"{kind} field {number}")
                self.message(children[number], low, high, depth + 1)
            elif kind == "node" and number in (_NODE_OPERATOR, _NODE_DOMAIN):
                self._want(wire, _BYTES, f"node field {number}")
                text = self._text(low, high)
                operator, domain = (text, domain) if number == _NODE_OPERATOR else (operator, text)
            elif kind == "model" and number == _MODEL_TRAINING:
                raise MalformedGraph("a training part, which no server runs")
        if kind == "node":
            self.found.operators.add((domain, operator))

    def _tensor(self, start: int, end: int) -> None:
        tensor = _Tensor()
        for number, wire, low, high in self._fields(start, end):
            if number == _DIMS:
                tensor.dims += [low] if wire == _VARINT else self._packed(wire, low, high)
            elif number in (_DATA_TYPE, _DATA_LOCATION):
                self._want(wire, _VARINT, f"tensor field {number}")
                if number == _DATA_TYPE:
                    tensor.data_type = low
                else:
                    tensor.external = low == _EXTERNAL
            elif number in (_NAME, _RAW_DATA, _EXTERNAL_DATA):
                self._want(wire, _BYTES, f"tensor field {number}")
                if number == _NAME:
                    tensor.name = self._text(low, high)
                elif number == _RAW_DATA:
                    tensor.raw_bytes = high - low
                else:
                    self._entry(tensor, low, high)
        self._place(tensor)

    def _entry(self, tensor: _Tensor, start: int, end: int) -> None:
        parts = {_KEY: "", _VALUE: ""}
        for number, wire, low, high in self._fields(start, end):
            if number in parts:
                self._want(wire, _BYTES, "external data")
                parts[number] = self._text(low, high)
        if parts[_KEY] in tensor.entries:
            raise MalformedGraph(f"tensor `{tensor.name}` with two of `{parts[_KEY]}` in its external data")
        tensor.entries[parts[_KEY]] = parts[_VALUE]

    def _place(self, tensor: _Tensor) -> None:
        """Compare a tensor's shape with its bytes, or note where they lie."""
        label = f"tensor `{tensor.name}`"
        if tensor.external != bool(tensor.entries):
            raise MalformedGraph(f"{label} that says half of where its numbers lie")
        if tensor.raw_bytes is None and not tensor.external:
            return  # numbers of their own protobuf type, a few at most; the loader counts them
        if tensor.raw_bytes is not None and tensor.external:
            raise MalformedGraph(f"{label} with numbers in this file and in another one")
        if tensor.data_type not in _BITS:
            raise MalformedGraph(f"{label} of the type {tensor.data_type}")
        if any(dim >= 1 << 63 for dim in tensor.dims):
            raise MalformedGraph(f"{label} with a negative dimension")
        needed = -(-math.prod(tensor.dims) * _BITS[tensor.data_type] // 8)
        if tensor.external:
            self.found.external.append(TensorPlace(tensor.name, tensor.entries, needed))
        elif tensor.raw_bytes != needed:
            raise MalformedGraph(f"{label} of shape {tensor.dims} with {tensor.raw_bytes} bytes instead of {needed}")

    def _fields(self, start: int, end: int) -> Iterator[_Field]:
        at = start
        while at < end:
            self._parts += 1
            if self._parts > MOST_PARTS:
                raise MalformedGraph(f"more than {MOST_PARTS:,} parts")
            tag, at = self._varint(at, end)
            number, wire = tag >> 3, tag & 7
            if number == 0:
                raise MalformedGraph(f"a field without number at byte {at}")
            if wire == _VARINT:
                value, at = self._varint(at, end)
                yield number, wire, value, value
                continue
            if wire == _BYTES:
                length, at = self._varint(at, end)
            elif wire in _FIXED_BYTES:
                length = _FIXED_BYTES[wire]
            else:
                raise MalformedGraph(f"wire type {wire} at byte {at}")
            if length > end - at:
                raise MalformedGraph(f"{length} bytes announced at byte {at}, {end - at} there")
            yield number, wire, at, at + length
            at += length

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        self._file.seek(at)
        value = 0
        for place, byte in enumerate(self._file.read(min(_MOST_VARINT_BYTES, end - at))):
            value |= (byte & 0x7F) << (7 * place)
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, at + place + 1
        raise MalformedGraph(f"a number without end at byte {at}")

    def _packed(self, wire: int, start: int, end: int) -> list[int]:
        self._want(wire, _BYTES, "tensor shape")
        values, at = [], start
        while at < end:
            self._parts += 1
            value, at = self._varint(at, end)
            values.append(value)
        return values

    def _text(self, start: int, end: int) -> str:
        if end - start > _MOST_NAME_BYTES:
            raise MalformedGraph(f"a name of {end - start} bytes at byte {start}")
        self._file.seek(start)
        try:
            return self._file.read(end - start).decode()
        except UnicodeDecodeError as error:
            raise MalformedGraph(f"a name that is no UTF-8 at byte {start}") from error

    @staticmethod
    def _want(wire: int, wanted: int, what: str) -> None:
        if wire != wanted:
            raise MalformedGraph(f"{what} as wire type {wire}")
