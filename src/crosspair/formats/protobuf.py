"""The protocol buffer wire format, as far as TensorFlow's records and checkpoints need it.

A parser of our own keeps TensorFlow and generated message classes out of the installation. Damage raises ValueError.
"""

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

Value = int | memoryview


def read_varint(data: memoryview, position: int) -> tuple[int, int]:
    """The unsigned number that starts at `position`, and the position behind it."""
    number = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ValueError("a number runs past the end")
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, position


def fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """Field number and value of every field in order: an unsigned int, or the bytes of a string or inner message."""
    position = 0
    while position < len(message):
        key, position = read_varint(message, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == VARINT:
            value, position = read_varint(message, position)
            yield number, value
            continue
        if wire_type == BYTES:
            length, position = read_varint(message, position)
        elif wire_type in (FIXED32, FIXED64):
            length = 4 if wire_type == FIXED32 else 8
        else:
            raise ValueError(f"field {number} has the unknown wire type {wire_type}")
        if position + length > len(message):
            raise ValueError(f"field {number} runs past the end")
        content = message[position : position + length]
        yield number, content if wire_type == BYTES else int.from_bytes(content, "little")
        position += length


def messages(message: memoryview, number: int) -> Iterator[memoryview]:
    """The values of a field of strings or inner messages, in order."""
    for found, value in fields(message):
        if found == number:
            if isinstance(value, int):
                raise ValueError(f"field {number} holds a number; expected bytes")
            yield value


def integers(message: memoryview, number: int) -> list[int]:
    """The values of an int64 field, packed or not, in order."""
    values = []
    for found, value in fields(message):
        if found == number:
            if isinstance(value, int):
                values.append(value)
            else:
                position = 0
                while position < len(value):
                    one, position = read_varint(value, position)
                    values.append(one)
    return [value - (1 << 64) if value >> 63 else value for value in values]


def integer(message: memoryview, number: int) -> int:
    """The last value of an int field, 0 where it is absent."""
    return next(reversed(integers(message, number)), 0)


def text(message: memoryview, number: int) -> str:
    """The last value of a string field, empty where it is absent."""
    value = b""
    for content in messages(message, number):
        value = bytes(content)
    return value.decode()
