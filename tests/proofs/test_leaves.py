"""The spec's leaves and their fast twins in the emulator do the same; and Hypothesis searches with CrossHair's backend.

A twin is a contract as in `proofs.leaves`, but it runs the emulator's own function on a stand-in for the machine.  Z3 decides it
for every argument; `crosshair diffbehavior` decides some of them once more.
"""
# ruff: noqa: F401 (conditions in docstrings use the names)
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator import hypervisor as hv
from emulator import layout
from emulator.hypervisor import Hypervisor
from proofs.contract_proof import decided
from proofs.contracts import Finding, contract
from proofs.crosshair_run import is_installed
from proofs.leaves import Everywhere, passes_segment
from proofs.ledger import PROVED, REFUTED
from spec.abi import DOMID_SELF, DOMID_XEN, EFAULT, EINVAL, L1, L2, NOBODY, PAGE_SIZE, RW, P, Xen2003
from spec.frames import may_walk, mfn_of
from spec.kernel import DomId, FrameType, Index, Mfn
from spec.profile import X86_32, XEN_2003
from spec.tables import is_writable_self_map, is_xen_slot, legal_bits, same_authority
from spec.vocabulary import FREE_FRAME, pack_frame, unpack_frame
from spec.x86.paging import index_at

S: Any = SimpleNamespace(profile=XEN_2003)
LAST, ROOT = X86_32.levels
ENTRY = 1 << 32

needs_crosshair = pytest.mark.skipif(
    not is_installed(), reason="NOT CHECKED BY CROSSHAIR: pip install 'crosshair-tool>=0.0.113,<0.1' (or '.[proofs]')")


# --- twins -------------------------------------------------------------------------------------------------------------------

class Cell:
    """An array of which only one word matters; `seen` are the places that were asked for, and the word may depend on how many."""

    def __init__(self, *words: Any) -> None:
        self.words, self.seen = words, []

    def __getitem__(self, i: Any) -> Any:
        self.seen.append(i)
        return self.words[min(len(self.seen), len(self.words)) - 1]

    def __setitem__(self, i: Any, word: Any) -> None:
        self.words = (word,)


def machine(**parts: Any) -> Any:
    """A stand-in for the hypervisor with the parts that a method uses."""
    return SimpleNamespace(written=SimpleNamespace(add=lambda f: None), **parts)


def noted(calls: list[str], name: str) -> Any:
    """A method that succeeds and is noted."""
    return lambda *_: calls.append(name) or True


def twin_usable(d: int, word: int) -> bool:
    """The emulator lets a domain use the frames that its walks may go through.

    pre: 0 <= d < DOMID_SELF and 0 <= word < 1 << 64
    pre: unpack_frame(word)[0] < DOMID_SELF or unpack_frame(word)[0] in (DOMID_XEN, NOBODY)
    post: __return__ == may_walk(owned_by(unpack_frame(word)[0], d == 0), d, 0)
    """
    return Hypervisor.usable(None, d << 48, word)


def owned_by(owner: int, privileged: bool) -> Any:
    """A state in which every frame has that owner, and every domain that privilege."""
    return SimpleNamespace(profile=XEN_2003, owner=Everywhere(DomId(owner)), privileged=Everywhere(privileged))


def twin_more_references(owner: int, kind: int, typed: int, refs: int, pinned: bool) -> tuple[int, int]:
    """Adding its constants to a frame's word is packing one reference more.

    pre: 0 <= owner < 0x10000 and 1 <= kind < 8 and 1 <= typed < 0x3FFFFF and 0 <= refs < 0x3FFFFF
    post: __return__[0] == pack_frame(owner, kind, typed, refs + 1, pinned)
    post: __return__[1] == pack_frame(owner, kind, typed + 1, refs + 1, pinned)
    """
    word = pack_frame(owner, kind, typed, refs, pinned)
    return word + hv.GENERAL_REF, word + hv.BOTH


def twin_first_typed_reference(owner: int, old: int, kind: int, refs: int) -> int:
    """The emulator gives an idle frame another type, and then a typed reference.

    pre: 0 <= owner < 0x10000 and 0 <= old < 8 and 1 <= kind < 8 and 0 <= refs < 0x3FFFFF
    post: __return__ == pack_frame(owner, kind, 1, refs + 1, False)
    """
    word = owner << 48 | old << 44 | refs << 22     # it remembers the idle frame's type
    return Hypervisor.retyped(machine(idle_since=Everywhere(-1), clock=0), 0, word, kind << 44) + hv.BOTH


def twin_parts_of_a_word(word: int) -> tuple[Any, ...]:
    """The emulator's masks cut a frame's word as it reads.

    pre: 0 <= word < 1 << 64
    post: __return__ == unpack_frame(word)
    """
    return ((word & hv.OWNER) >> 48, (word & hv.TYPE) >> 44, word & hv.TYPED, (word & hv.REFS) >> 22, word & hv.PINNED != 0)


def twin_shown_word(word: int) -> int:
    """What the emulator shows of its word, without an idle frame's type, is the packing of its parts.

    pre: 0 <= word < 1 << 64
    post: __return__ == pack_frame(*unpack_frame(word))
    """
    return word if word & hv.TYPED else word & ~hv.TYPE


def twin_legal_l2_entry(g: int, e: int) -> bool:
    """The emulator takes an upper entry, its L1 table being fine, exactly if it is legal and no writable self-map.

    pre: 0 <= g < 1 << 20 and 0 <= e < ENTRY and e & P != 0
    post: __return__ == (legal_bits(S, L2, e) and not is_writable_self_map(S, g, L2, e))
    """
    return Hypervisor.take_l2e(machine(get_table=lambda *_: True), g, e, 0)


def twin_legal_l1_entry(e: int) -> bool:
    """The emulator puts an entry into an L1 table, its frame being fine, exactly if it is absent or legal.

    pre: 0 <= e < ENTRY
    post: __return__ == (e & P == 0 or legal_bits(S, L1, e))
    """
    return Hypervisor.mod_l1_entry(machine(ram=Cell(0), pg=Cell(0), get_page=lambda *_: True), 0, e)


def twin_fast_path_of_l1(old: int, to: int) -> tuple[str, ...]:
    """A present entry of an L1 table moves references exactly if the authority changes: first the new one's, then the old one's.

    pre: 0 <= old < ENTRY and 0 <= to < ENTRY and old & P != 0 and to & P != 0 and legal_bits(S, L1, to)
    post: __return__ == (() if same_authority(S, L1, old, to) else ("get", "put"))
    """
    calls: list[str] = []
    Hypervisor.mod_l1_entry(machine(ram=Cell(old), pg=Cell(0), get_page=noted(calls, "get"), put_page=noted(calls, "put")), 0, to)
    return tuple(calls)


def twin_fast_path_of_l2(g: int, i: int, old: int, to: int) -> tuple[str, ...]:
    """The same for an entry of an upper table that is not Xen's.

    pre: 0 <= g < 1 << 20 and 0 <= i < 1024 and not is_xen_slot(S, L2, i)
    pre: 0 <= old < ENTRY and 0 <= to < ENTRY and old & P != 0 and to & P != 0
    post: __return__ == (() if same_authority(S, L2, old, to) else ("take", "put"))
    """
    calls: list[str] = []
    stand_in = machine(ram=Cell(old), pg=Cell(0), take_l2e=noted(calls, "take"), put_l2e=noted(calls, "put"))
    Hypervisor.mod_l2_entry(stand_in, (g << 10) + i, to)
    return tuple(calls)


def twin_xen_slot(g: int, i: int) -> bool:
    """The emulator changes an entry of a root table, nothing else speaking against it, exactly if its slot is not Xen's.

    pre: 0 <= g < 1 << 20 and 0 <= i < 1024
    post: __return__ == (not is_xen_slot(S, L2, i))
    """
    return Hypervisor.mod_l2_entry(machine(ram=Cell(0), pg=Cell(0)), (g << 10) + i, 0)


def twin_page_of_xen(page: int) -> int:
    """update_va_mapping refuses the pages that Xen's slots translate, before it looks at any table.

    pre: 0 <= page < 1 << 20
    post: __return__ == (-EINVAL if is_xen_slot(S, L2, index_at(ROOT, page << 12)) else -EFAULT)
    """
    return Hypervisor.update_va_mapping(machine(ram=Cell(0), root=0), page, 0, 0)


def twin_walk(root: int, va: int, pde: int, pte: int) -> bool:
    """The emulator's walk asks for the words that the indices select, and ends at the word that the address names.

    pre: 0 <= root < 1 << 20 and 0 <= va < ENTRY and 0 <= pde < ENTRY and 0 <= pte < ENTRY
    post: __return__
    """
    ram = Cell(pde, pte)
    found = Hypervisor.walk(machine(ram=ram, root=root << 10), va)
    places = [(root << 10) + index_at(ROOT, va), (mfn_of(S, pde) << 10) + index_at(LAST, va)]
    if pde & P == 0 or pte & P == 0:
        return found == -1 and ram.seen == places[:1 if pde & P == 0 else 2]
    return ram.seen == places and found == mfn_of(S, pte) * (PAGE_SIZE // 4) + va % PAGE_SIZE // 4


def twin_segment(va: int) -> Any:
    """The emulator reads a mapped, aligned word exactly if the guest's segments reach it.

    pre: 0 <= va < ENTRY and va % 4 == 0
    post: (__return__ is not None) == passes_segment(S, va, 4)
    """
    return Hypervisor.read(machine(walk=lambda _: 0, ram=Cell([0])), va, 1)


TWINS = {name: contract(f) for name, f in list(globals().items()) if name.startswith("twin_")}


@pytest.mark.parametrize("name", TWINS)
def test_the_emulator_does_what_the_leaf_does(name):
    assert decided(TWINS[name]).finding == Finding(PROVED)


@pytest.mark.parametrize(("name", "constant", "wrong"), [
    ("twin_usable", "NO_DOMAIN", (DOMID_SELF << 48) + (3 << 48)),
    ("twin_usable", "OWNER", 0x3FFF << 48),
    ("twin_more_references", "GENERAL_REF", 1 << 21),
    ("twin_more_references", "BOTH", (1 << 22) + 2),
    ("twin_first_typed_reference", "TYPE", 3 << 44),
    ("twin_parts_of_a_word", "PINNED", 1 << 46),
    ("twin_shown_word", "TYPED", 0x1FFFFF),
    ("twin_legal_l2_entry", "L2_ILLEGAL", 0x80),
    ("twin_legal_l1_entry", "L1_ILLEGAL", 0x180 | 0x40),
    ("twin_fast_path_of_l1", "FRAME", 0xFFFFE000),
    ("twin_fast_path_of_l1", "RW", 0),
    ("twin_fast_path_of_l2", "FRAME", 0xFFFFF800),
    ("twin_xen_slot", "XEN_SLOT", 1009),
    ("twin_page_of_xen", "HOLE", 0xFC400000),
    ("twin_walk", "P", 3),
    ("twin_segment", "GUEST_END", 0xFC400004)])
def test_a_wrong_constant_is_found(name, constant, wrong, monkeypatch):
    monkeypatch.setattr(hv, constant, wrong)
    assert decided(TWINS[name]).finding.verdict == REFUTED


def test_the_words_that_the_machine_is_laid_out_with_are_of_the_spec():
    slots = layout.xen_slots()
    assert [XEN_2003.xen_first <= i <= XEN_2003.xen_last for i in (1007, 1008, 1023, 1024)] == [False, True, True, False]
    assert len(slots) == XEN_2003.xen_last + 1 - XEN_2003.xen_first
    assert slots[XEN_2003.self_slot - XEN_2003.xen_first] & ~(PAGE_SIZE - 1) == 0
    for n, entry in enumerate(layout.harness_l1()):
        assert mfn_of(S, entry) == n
        assert legal_bits(S, FrameType(L1), entry)
    assert all(entry & RW == 0 for entry in layout.m2p_l1(5000))
    assert index_at(ROOT, layout.HARNESS) == layout.HARNESS_SLOT
    assert is_xen_slot(S, FrameType(L2), index_at(ROOT, layout.HARNESS))
    assert index_at(ROOT, Xen2003.BASE) < XEN_2003.xen_first
    assert unpack_frame(FREE_FRAME)[0] << 48 >= hv.NO_DOMAIN


# --- crosshair diffbehavior --------------------------------------------------------------------------------------------------

# The engine decides every twin; diffbehavior decides again those of these leaves (pair of functions below -> twin).
AGAIN = {"frame": "twin_walk", "slot": "twin_xen_slot", "page_of_xen": "twin_page_of_xen", "segment": "twin_segment"}

PAIRS = '''"""Leaves and their twins as functions of all ints: ranges are within, as diffbehavior wants them."""
from types import SimpleNamespace

from emulator import hypervisor as hv
from spec.abi import L2, P
from spec.frames import mfn_of
from spec.profile import X86_32, XEN_2003
from spec.tables import is_xen_slot
from spec.x86.paging import index_at, require_segment, Fault

S = SimpleNamespace(profile=XEN_2003)


def frame(e: int) -> int:
    return mfn_of(S, e % (1 << 32))


def frame_twin(e: int) -> int:
    return e % (1 << 32) >> 12


def frame_wrong(e: int) -> int:
    return e % (1 << 32) >> 11


def slot(i: int) -> bool:
    return is_xen_slot(S, L2, i % 1024)


def slot_twin(i: int) -> bool:
    return i % 1024 & 1023 >= hv.XEN_SLOT


def slot_wrong(i: int) -> bool:
    return i % 1024 & 1023 > hv.XEN_SLOT


def page_of_xen(page: int) -> bool:
    return is_xen_slot(S, L2, index_at(X86_32.levels[1], page % (1 << 20) << 12))


def page_of_xen_twin(page: int) -> bool:
    return page % (1 << 20) >= hv.HOLE >> 12


def page_of_xen_wrong(page: int) -> bool:
    return page % (1 << 20) >= hv.GUEST_END >> 12


def segment(va: int) -> bool:
    try:
        require_segment(S, va % (1 << 32), 4)
    except Fault:
        return False
    return True


def segment_twin(va: int) -> bool:
    return va % (1 << 32) + 4 <= hv.GUEST_END


def segment_wrong(va: int) -> bool:
    return va % (1 << 32) + 3 <= hv.GUEST_END
'''


def diffbehavior(folder: Path, first: str, second: str) -> str:
    """What `crosshair diffbehavior` prints of two functions of PAIRS."""
    (folder / "pairs.py").write_text(PAIRS, encoding="utf-8")
    path = os.pathsep.join((str(Path(__file__).parents[2]), str(folder)))
    done = subprocess.run([sys.executable, "-m", "crosshair", "diffbehavior", "--per_condition_timeout=10",
                           f"pairs.{first}", f"pairs.{second}"], capture_output=True, text=True, check=False, timeout=120,
                          env=os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "0"})
    return done.stdout + done.stderr


def test_what_diffbehavior_decides_the_engine_decides_too():
    assert set(AGAIN.values()) < set(TWINS)


@needs_crosshair
@pytest.mark.parametrize("name", AGAIN)
def test_diffbehavior_finds_no_difference_on_any_path(name, tmp_path):
    assert "All paths exhausted, functions are likely the same!" in diffbehavior(tmp_path, name, f"{name}_twin")


@needs_crosshair
@pytest.mark.parametrize("name", AGAIN)
def test_diffbehavior_finds_a_planted_difference(name, tmp_path):
    printed = diffbehavior(tmp_path, name, f"{name}_wrong")
    assert "Given:" in printed
    assert "All paths exhausted" not in printed


# --- Hypothesis with CrossHair's backend -------------------------------------------------------------------------------------

BACKEND = importlib.util.find_spec("hypothesis_crosshair_provider") is not None
SEARCH = settings(settings.get_profile("crosshair")) if BACKEND else settings()
needs_backend = pytest.mark.skipif(
    not BACKEND, reason="NOT SEARCHED BY CROSSHAIR: pip install 'hypothesis-crosshair>=0.0.31,<0.1' (or '.[proofs]')")


def needle(va: int) -> None:
    """One address in 2^24 has a wrong index."""
    wrong = index_at(ROOT, va) if va >> 8 != 0xFACADE else Index(0)
    assert wrong == index_at(ROOT, va)


@needs_backend
def test_the_backend_finds_a_needle():
    with pytest.raises(AssertionError):
        SEARCH(given(st.integers(0, ENTRY - 1))(needle))()


def test_without_the_backend_the_needle_is_missed():
    settings(settings.get_profile("ci"), max_examples=1000)(given(st.integers(0, ENTRY - 1))(needle))()


WITHOUT = """
import importlib.util, pytest, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if "hypothesis_crosshair" in name else find(name, *more)
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "tests/spec/test_paging.py"]))
"""


def test_without_the_backend_its_profile_is_refused_in_words():
    done = subprocess.run([sys.executable, "-c", WITHOUT], env=os.environ | {"HYPOTHESIS_PROFILE": "crosshair"}, check=False,
                          capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=60)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "pip install 'xenspec[proofs]'" in done.stdout + done.stderr


@needs_backend
def test_the_backend_agrees_that_entry_and_index_twins_do_the_same():
    @SEARCH
    @given(st.integers(0, ENTRY - 1), st.integers(0, ENTRY - 1))
    def search(va: int, e: int) -> None:
        assert mfn_of(S, e) == Mfn(e >> 12)
        assert is_xen_slot(S, FrameType(L2), index_at(ROOT, va)) == (va >= hv.HOLE)
        assert passes_segment(S, va, 4) == (va + 4 <= hv.GUEST_END)

    search()
