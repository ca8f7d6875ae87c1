"""Images of real machines as states: what is taken over, what Xen holds, and what the specification has no word for."""
from dataclasses import replace

import pytest

from refmodel import Imported, audit, imported, imported_machine
from refmodel.imported import MATTERS, REASONS
from spec.abi import DOMID_IO, DOMID_XEN, L1, L4, NONE, PCD, RW, SEG_DESC, US, WRITABLE, A, D, P, Xen417
from spec.vocabulary import DomainSetup, FrameView, Hypercall, Image, Setup

FULL = P | RW | US | A | D
SLOTS = (0x1005, 0, 0x43, 0, 0x2063, *[0] * 11)
ROOT, TABLE, DATA, SHARED, GDT, SHOWN, DEVICE, XENS = 16, 17, 18, 19, 20, 3, 2, 1
ROOT_OF_1 = 24


def frame(mfn: int, owner: int = 0, kind: int = NONE, typed: int = 0, count: int | None = None, allocated: bool = True,
          validated: bool = False, pinned: bool = False, xen_heap: bool = False) -> FrameView:
    return FrameView(mfn, owner, kind, typed, typed + allocated - xen_heap if count is None else count, allocated, xen_heap,
                     validated, pinned, False, 0)


def words(**at: int) -> tuple[int, ...]:
    row = [0] * 512
    for name, e in at.items():
        row[int(name.removeprefix("i"))] = e
    return tuple(row)


def root_words(f: int, slots: tuple[int, ...] = SLOTS) -> tuple[int, ...]:
    row = [0] * 512
    row[256:272] = slots
    row[258] |= f << 12
    return tuple(row)


def small() -> Image:
    """A domain with a root (its base, pinned), an L1 table (pinned) that maps a page, shared_info and a descriptor table."""
    return Image(
        "xen-4.17", 64,
        (frame(XENS, DOMID_XEN, allocated=False), frame(DEVICE, DOMID_IO, WRITABLE, 1),
         frame(SHOWN, DOMID_XEN, NONE, 1, xen_heap=True),
         frame(ROOT, 0, L4, 2, validated=True, pinned=True), frame(TABLE, 0, L1, 1, validated=True, pinned=True),
         frame(DATA, 0, WRITABLE, 1), frame(SHARED, 0, WRITABLE, 2, xen_heap=True),
         frame(GDT, 0, SEG_DESC, 1, 3, validated=True)),
        {ROOT: root_words(ROOT), TABLE: words(i0=DATA << 12 | FULL, i1=SHARED << 12 | FULL, i2=GDT << 12 | FULL & ~RW)},
        {DATA: 5}, base={0: ROOT}, xen_slots=SLOTS, domain_slot={0: SLOTS[4]}, descriptors={GDT: 1, XENS: 14},
        pages={0: 4}, xen_pages={0: 1}, max_pages={0: 10})


def rules(image: Image) -> set[str]:
    return {v.rule for v in audit(imported(image).state)}


def kinds(found: Imported) -> dict[str, int]:
    return dict(found.counts()[1])


def changed(image: Image, view: FrameView) -> Image:
    return replace(image, table=tuple(sorted((*(v for v in image.table if v.mfn != view.mfn), view), key=lambda v: v.mfn)))


def with_entry(i: int, e: int) -> Image:
    image = small()
    row = list(image.words[TABLE])
    row[i] = e
    return replace(image, words=image.words | {TABLE: tuple(row)})


def test_a_small_image_keeps_every_rule() -> None:
    found = imported(small())
    assert audit(found.state) == []
    assert [(r.mfn, r.kind, r.typed) for r in found.references] == [
        (ROOT, "kernel root", 1), (SHARED, "shared memory of Xen's", 1), (GDT, "descriptor table", 1)]
    assert kinds(found) == {"device frame": 1, "frame that Xen shows to domain 0": 1}
    assert all(r.why == REASONS[r.kind] for r in found.references)
    assert all(u.why == MATTERS[u.kind] for u in found.unmodelled)
    m = found.state.maps
    assert (m["pages"][0], m["limit"][0], m["m2p"][DATA]) == (5, 11, 5)
    assert (m["ref_count"][SHARED], m["type_count"][SHARED], m["xen_held"][SHARED]) == (3, 2, 1)
    assert m["opened"][ROOT]


def test_the_gdt_of_an_image_is_its_domains() -> None:
    found = imported(replace(small(), gdt={(0, 0): GDT}))
    assert audit(found.state) == []
    assert (found.state.maps["has_gdt"][0, 0], found.state.maps["gdt"][0, 0], found.state.maps["xen_held"][GDT]) == (True, GDT, 0)
    machine = imported_machine(Setup("xen-4.17", 64, 4, (DomainSetup(0, ROOT, 3),)), replace(small(), gdt={(0, 0): GDT}))
    assert machine.step(Hypercall(0, Xen417.SET_GDT, (0, 0))).value == 0
    assert machine.concrete.maps["type_count"][GDT] == 0


def test_the_machine_of_an_image_runs() -> None:
    machine = imported_machine(Setup("xen-4.17", 64, 4, (DomainSetup(0, ROOT, 3),)), small())
    assert machine.free_frames() == 64 - len(small().table)
    assert machine.next_free() == 21
    assert machine.base_of(0) == ROOT
    assert machine.observe().extent == GDT + 1


@pytest.mark.parametrize(("entry", "kind", "left"), [
    (40 << 20 | FULL, "device mapping", 0),
    (DEVICE << 12 | FULL, "device mapping", 0),
    (SHOWN << 12 | P | US, "mapping of Xen's shared frame", 0)])
def test_a_mapping_without_references_is_left_out_and_listed(entry: int, kind: str, left: int) -> None:
    found = imported(with_entry(7, entry))
    assert audit(found.state) == []
    assert [(u.mfn, u.kind, u.index, u.value) for u in found.unmodelled if u.index is not None] == [(TABLE, kind, 7, entry)]
    assert found.state.maps["word"][TABLE, 7] == left


def test_cache_bits_are_left_out_and_listed() -> None:
    found = imported(with_entry(0, DATA << 12 | FULL | PCD))
    assert audit(found.state) == []
    assert kinds(found)["cache bits"] == 1
    assert found.state.maps["word"][TABLE, 0] == DATA << 12 | FULL


@pytest.mark.parametrize("entry", [SHOWN << 12 | FULL, XENS << 12 | P | US, 30 << 12 | P | US])
def test_a_mapping_that_domain_0_may_not_have_is_a_violation(entry: int) -> None:
    assert "SLOT-1" in rules(with_entry(7, entry))


def test_other_domains_have_no_rights_to_devices() -> None:
    image = with_entry(7, DEVICE << 12 | FULL)
    image = replace(image, table=tuple(replace(v, owner=1) if v.owner == 0 else v for v in image.table), base={1: ROOT},
                    domain_slot={0: SLOTS[4], 1: SLOTS[4]}, pages={1: 4}, xen_pages={1: 1}, max_pages={1: 10})
    assert {v.rule for v in audit(imported(image).state)} >= {"SLOT-1"}
    assert "device mapping" not in kinds(imported(image))


def test_each_domain_has_a_slot_of_its_own() -> None:
    own = (*SLOTS[:4], 0x3063, *SLOTS[5:])
    image = changed(small(), frame(ROOT_OF_1, 1, L4, 2, validated=True, pinned=True))
    image = replace(image, words=image.words | {ROOT_OF_1: root_words(ROOT_OF_1, own)}, base={0: ROOT, 1: ROOT_OF_1},
                    domain_slot={0: SLOTS[4], 1: own[4]}, pages={0: 4, 1: 1}, xen_pages={0: 1, 1: 0}, max_pages={0: 10, 1: 1})
    found = imported(image)
    assert audit(found.state) == []
    assert [found.state.maps["xen_word"][d, 260] for d in (0, 1)] == [SLOTS[4], own[4]]
    assert found.state.maps["word"][ROOT_OF_1, 260] == own[4]
    foreign = replace(image, domain_slot=image.domain_slot | {1: 0x4063})
    assert {(v.rule, v.key) for v in audit(imported(foreign).state) if v.rule == "SLOT-1"} == {("SLOT-1", (ROOT_OF_1, 260))}


def test_roots_of_further_vcpus_are_xens_references() -> None:
    image = replace(changed(small(), frame(ROOT, 0, L4, 4, validated=True, pinned=True)), other_roots=(ROOT, ROOT))
    found = imported(image)
    assert audit(found.state) == []
    assert ("root of another vCPU", 2) in [(r.kind, r.typed) for r in found.references]
    assert rules(replace(image, other_roots=())) == {"COUNT-1"}


def test_read_only_memory_of_xens_has_no_typed_reference() -> None:
    image = replace(changed(small(), frame(21, 0, NONE, 1, 1, xen_heap=True)), xen_pages={0: 2})
    found = imported(image)
    assert audit(found.state) == []
    assert kinds(found)["read-only memory of Xen's"] == 1


def test_a_root_that_was_never_a_base_lacks_the_window() -> None:
    image = changed(small(), frame(21, 0, L4, 1, validated=True, pinned=True))
    image = replace(image, words=image.words | {21: root_words(21, (0, *SLOTS[1:]))}, pages={0: 5})
    assert rules(image) == set()
    assert not imported(image).state.maps["opened"][21]
    assert rules(replace(image, words=image.words | {21: root_words(21, (8, *SLOTS[1:]))})) == {"SLOT-1", "SLOT-2"}


def test_a_validation_that_was_interrupted_is_a_violation() -> None:
    view = next(v for v in small().table if v.mfn == TABLE)
    assert "FRAME-1" in rules(changed(small(), replace(view, partial=True, validated=False, pinned=False)))
