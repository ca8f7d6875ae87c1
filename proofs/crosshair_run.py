"""Runs CrossHair on a contract, in a process of its own, and reads what it prints, since its status does not tell."""
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from proofs import leaves
from proofs.contracts import Contract, Finding
from proofs.ledger import PROVED, REFUTED, UNKNOWN

BUDGET: Final = 10.0                        # CPU seconds of CrossHair for one condition
# The contracts that CrossHair decides, within a second each.  It leaves open what has `|`, or `&` with masks other than 2^k - 1.
DECIDES: Final = frozenset((
    "entry_names_the_frame_it_was_made_of",
    "entry_names_a_frame_that_a_word_can_hold",
    "upper_tables_are_the_tables_above_l1",
    "xen_slots_cover_exactly_the_hole_of_2003",
    "xen_slots_cover_exactly_the_hole_of_4_17",
    "xen_slots_are_of_a_root_table",
    "stretch_clear_of_xen_has_no_slot_of_xen",
    "stretch_not_clear_of_xen_has_a_slot_of_xen",
    "index_lies_in_the_table",
    "canonical_address_is_a_sign_extension",
    "canonical_address_of_32_bits_is_any",
    "segment_of_2003_ends_below_xen",
    "segment_of_4_17_does_not_cross_the_middle",
    "kernel_is_a_supervisor_in_ring_1_only",
    "entry_without_rights_restricts_nothing",
    "fault_code_tells_the_access",
    "small_page_is_the_entrys_frame",
    "tag_tells_page_and_kind",
    "tags_of_different_pages_differ",
))
_LINE: Final = re.compile(r"^(?P<file>.+?):(?P<line>\d+): (?P<kind>error|warning|info): (?P<text>.*)$")


def is_installed() -> bool:
    """CrossHair is there."""
    return importlib.util.find_spec("crosshair") is not None


def crosshair(contract: Contract, budget: float = BUDGET) -> Finding:
    """What CrossHair says of a contract.  The budget is CPU time, so that what else runs changes no verdict."""
    file = inspect.getfile(contract.function)
    root = Path(leaves.__file__).parents[1]
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "crosshair", "check", "--report_all", "--analysis_kind=PEP316",
             f"--per_condition_timeout={budget}", f"{file}:{contract.first}"], capture_output=True, text=True, check=False,
            timeout=30 + 10 * budget * len(contract.post), cwd=root, env=os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "0"})
    except subprocess.TimeoutExpired:
        return Finding(UNKNOWN, "it did not end")
    if done.returncode not in (0, 1):
        return Finding(UNKNOWN, f"it ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return parse(done.stdout, contract.first, contract.last, len(contract.post))


def parse(output: str, first: int, last: int, conditions: int) -> Finding:
    """What CrossHair's lines say of the contract in lines [first, last]: each condition must be confirmed."""
    confirmed, notes = 0, []
    for line in output.splitlines():
        match = _LINE.match(line)
        if not match or not first <= int(match["line"]) <= last:
            continue
        text = match["text"].strip()
        if match["kind"] == "error":
            return Finding(REFUTED, text)
        if text == "Confirmed over all paths.":
            confirmed += 1
        elif text not in notes:
            notes.append(text)
    if confirmed == conditions and not notes:
        return Finding(PROVED)
    return Finding(UNKNOWN, "; ".join(notes) or f"{confirmed} of {conditions} conditions confirmed")
