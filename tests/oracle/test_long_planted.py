"""Single edits planted in the specification's 64-bit functions: random trials find each."""
import types
from itertools import count
from pathlib import Path

import pytest

from oracle import bare64
from oracle.long_difference import long_difference
from oracle.long_trials import LONG_FAMILIES, long_trials
from oracle.targets import open_long_processor
from spec.x86 import long_interrupts, long_mode, system_calls

MODULES = {"long_mode": long_mode, "long_interrupts": long_interrupts, "system_calls": system_calls}
EACH = 1500                                 # trials of each family

PLANTS = [
    ("long_mode", "if is_unknown_code(q):", "if False:"),
    ("long_mode", "elif not is_canonical(X86_64, address):", "elif False:"),
    ("long_mode", "cpl != 3 and selector & RPL == cpl", "selector & RPL == cpl"),
    ("long_mode", "is_null(selector) and in_64 and", "is_null(selector) and"),
    ("long_mode", "if not (is_canonical(X86_64, address) and is_canonical(X86_64, (address + size - 1) & MASK)):",
     "if not is_canonical(X86_64, address):"),
    ("long_mode", "raise Fault(SS if stack else GP, 0)", "raise Fault(GP, 0)"),
    ("long_mode", "return base_of(q)", "return q >> 16 & 0xFFFFFF"),
    ("long_mode", "return other, base", "return base, other"),
    ("long_mode", "return ring * 8 + 4 if ist == 0", "return ring * 8 if ist == 0"),
    ("long_mode", "else ist * 8 + 28", "else ist * 8 + 20"),
    ("long_mode", "stack_slot(ring, ist) + 7 > tss.limit", "stack_slot(ring, ist) + 3 > tss.limit"),
    ("long_mode", "return ss if ring == cpl else Segment(ring, 0)", "return Segment(ring, 0)"),
    ("long_mode", "Segment(ring, 0)", "Segment(0, 0)"),
    ("long_mode", "& 0xFFFFFFFF\n\n\n@predicate", "\n\n\n@predicate"),
    ("long_mode", "if rest >> 40 & 0x1F != 0:", "if rest >> 40 & 0xF != 0:"),
    ("long_mode", "with_rpl(target, 0)", "target"),
    ("long_mode", "ring = cpl if is_conforming(q) else dpl_of(q)", "ring = dpl_of(q)"),
    ("long_mode", "check_pushed(r, 2, size)", "check_pushed(r, 1, size)"),
    ("long_mode", "check_popped(r, beyond, 2, size)", "check_popped(r, beyond, 1, size)"),
    ("long_mode", "is_null(selector) and is_64(cs.q) and", "is_null(selector) and"),
    ("long_mode", "(read(top(r, beyond)) + release) & MASK", "read(top(r, beyond)) & MASK"),
    ("long_mode", "fs=keep(r.fs, ring)", "fs=r.fs"),
    ("long_interrupts", "or upper >> 40 & 0x1F != 0", ""),
    ("long_interrupts", "if software and dpl_of(gate) < cpl_of(r):", "if dpl_of(gate) < cpl_of(r):"),
    ("long_interrupts", "return rsp & (MASK ^ 15)", "return rsp & (MASK ^ 7)"),
    ("long_interrupts", "is_conforming(q) else dpl_of(q))", "False else dpl_of(q))"),
    ("long_interrupts", "if not is_64(q) or is_unknown_code(q) or", "if is_unknown_code(q) or"),
    ("long_interrupts", "ist == 0 else new_stack", "True else new_stack"),
    ("long_interrupts", "if r.eflags & NT != 0:", "if False:"),
    ("long_interrupts", "if ring == cpl and not is_64(r.cs.q):", "if ring == cpl:"),
    ("long_interrupts", "check_popped(r, 3 * size, 2, size)", "check_popped(r, 3 * size, 1, size)"),
    ("system_calls", "ALL ^ (msrs.mask & ALL)) | 2", "ALL ^ (msrs.mask & ALL))"),
    ("system_calls", "(selector + 8) & 0xFFFF", "selector & 0xFFFF"),
    ("system_calls", "r.eflags & (ALL ^ RF)", "r.eflags"),
    ("system_calls", "0x3C7FD7", "0x3C3FD7"),
    ("system_calls", "base + 16 if wide else base,", "base + 16,"),
    ("system_calls", "(wide and not is_canonical(X86_64, rcx))", "False"),
    ("system_calls", "(LSTAR, CSTAR, FS_BASE, GS_BASE, KERNEL_GS_BASE)", "(LSTAR, CSTAR, FS_BASE, GS_BASE)"),
]


@pytest.fixture(scope="module")
def recorded():
    """What the processor does in many trials, those of all families in turn."""
    processor = open_long_processor()
    made = [long_trials(number, EACH, family) for number, family in zip(count(40), LONG_FAMILIES, strict=False)]
    return [(trial, processor.perform(trial)) for turn in zip(*made, strict=True) for trial in turn]


def finds(recorded):
    """A trial shows a difference that is not declared."""
    return any(not d.declared for trial, does in recorded for d in long_difference("", trial, bare64.expected(trial), does))


@pytest.mark.long
def test_nothing_is_found_where_nothing_is_planted(recorded):
    assert not finds(recorded)


@pytest.mark.long
@pytest.mark.parametrize(("name", "old", "new"), PLANTS, ids=[f"{name}: {new or old}" for name, old, new in PLANTS])
def test_a_planted_edit_is_found(recorded, monkeypatch, name, old, new):
    planted = run_again(name, old, new)
    monkeypatch.setattr(bare64, name, planted)
    if name == "long_mode":                 # others have imported its functions
        using = run_again("long_interrupts")
        using.__dict__.update({key: value for key, value in vars(planted).items() if key in vars(using)})
        monkeypatch.setattr(bare64, "long_interrupts", using)
    assert finds(recorded)


def run_again(name, old="", new=""):
    """A module from its source, edited."""
    source = Path(MODULES[name].__file__).read_text()
    assert old in source
    module = types.ModuleType(name)
    exec(compile(source.replace(old, new, 1), name, "exec"), vars(module))
    return module
