"""Turns a listing into machine code: the bytes are written out, labels and constants are filled in.

A line is `label:`, or bytes and the instruction they encode, for the reader:

    83 c5 20             | add ebp, 32
    74 >done             | je done           one byte, relative to the end of the instruction
    e9 >>done            | jmp done          four bytes, relative
    64 a3 =FAR_POINTER   | mov fs:[FAR_POINTER], eax     four bytes, absolute
    68 =@done            | push done         four bytes, the address of a label
"""
import re
from collections.abc import Mapping

from emulator.errors import HarnessError

_TOKEN = re.compile(r"[0-9a-f]{2}|>>?\w+|=@?\w+")


def _width(token: str) -> int:
    return 4 if token.startswith((">>", "=")) else 1


def assemble(listing: str, constants: Mapping[str, int] = {}, base: int = 0) -> tuple[bytes, dict[str, int]]:
    """The code of a listing that lies at `base`, and the address of each of its labels."""
    lines: list[list[str]] = []
    labels: dict[str, int] = {}
    size = 0
    for line in filter(str.strip, listing.splitlines()):
        if line.strip().endswith(":"):
            labels[line.strip()[:-1]] = base + size
            continue
        tokens = line.split("|")[0].split()
        if not all(map(_TOKEN.fullmatch, tokens)):
            raise HarnessError(f"not a line of a listing: {line!r}")
        lines.append(tokens)
        size += sum(map(_width, tokens))
    code = bytearray()
    for tokens in lines:
        end = base + len(code) + sum(map(_width, tokens))
        for token in tokens:
            if token.startswith(">"):
                code += (labels[token.lstrip(">")] - end).to_bytes(_width(token), "little", signed=True)
            elif token.startswith("=@"):
                code += labels[token[2:]].to_bytes(4, "little")
            elif token.startswith("="):
                code += constants[token[1:]].to_bytes(4, "little")
            else:
                code += bytes.fromhex(token)
    return bytes(code), labels
