"""What a dead machine's memory still says: its bookkeeping audited, and the memory kept if that is wished."""
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from oracle.files import Buffer, write_whole_bytes
from oracle.targets import HarnessError, RealTarget, Target, read_image
from refmodel import Violation, audited, imported

SHOWN: Final = 3                            # violations that a line names


def autopsy(target: Target, keep: Path | None = None) -> str:
    """What the memory of a real machine says after its death, as a line to add to what it died of; "" of other targets.

    `keep` is where its memory is written to, for `xenspec audit --xen-image`.
    """
    memory = target.memory() if isinstance(target, RealTarget) else None
    if memory is None:
        return ""
    return f"\n    {finding(memory)}" + (f"\n    {kept(memory, keep)}" if keep is not None else "")


def finding(memory: Buffer) -> str:
    """What the audit of a dead machine's memory finds."""
    try:
        violations = audited(imported(read_image(memory)))
    except HarnessError as e:
        return f"audit of its memory: not possible: {e}"
    except Exception as e:                  # whatever a dying machine left behind
        return f"audit of its memory: not possible: {type(e).__name__}: {e}"
    return f"audit of its memory: {named(violations)}"


def named(violations: Sequence[Violation]) -> str:
    """How many violations, and the first of them."""
    if not violations:
        return "every invariant holds"
    first = "; ".join(f"{v.rule} at {', '.join(f'{k:#x}' for k in v.key)}: {v.text}" for v in violations[:SHOWN])
    return f"{len(violations)} violations: {first}" + (" …" if len(violations) > SHOWN else "")


def kept(memory: Buffer, path: Path) -> str:
    """Write the memory to a file, and say so."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole_bytes(path, memory)
    except OSError as e:
        return f"its memory could not be kept: {path}: {e.strerror}"
    return f"its memory is in {path}: xenspec audit --xen-image {path}"
