"""Bugs planted in the specification itself: the proofs must refute each, or say why it is idle.

Two kinds.  Every conjunct of every transition and guard is dropped in turn (`require(True, …)`); and effects, orders, masks and
levels are changed by hand.  A planted specification is a copy of the package with one module changed, for a process of its own.
"""
import ast
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import spec.rules
from spec.kernel import RULES

ROOT: Final = Path(spec.__file__).parent


@dataclass(frozen=True, slots=True)
class Plant:
    """A bug: in `module`, `old` becomes `new` (or the conjunct `drops` holds always); `first` are the rules to try first."""
    name: str
    summary: str
    module: str
    old: str = ""
    new: str = ""
    drops: str = ""
    first: tuple[str, ...] = ()


def source_of(module: str) -> str:
    """The text of a module of the specification, as it stands in its file."""
    return (ROOT.parent / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8")


def planted_source(plant: Plant) -> str:
    """The module's text with the bug in it.  ValueError if the plant does not fit the text any more."""
    text = source_of(plant.module)
    if plant.drops:
        return drop_conjunct(text, plant.drops)
    if text.count(plant.old) != 1:
        raise ValueError(f"{plant.name}: its place is {text.count(plant.old)} times in {plant.module}, not once")
    return text.replace(plant.old, plant.new)


def drop_conjunct(text: str, conjunct: str) -> str:
    """The text in which this conjunct's condition is True."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require":
            condition, name = node.args
            if isinstance(name, ast.Constant) and name.value == conjunct:
                lines = text.splitlines(keepends=True)
                start, end = (lines[condition.lineno - 1].encode(), condition.end_col_offset or 0)
                head, tail = start[:condition.col_offset].decode(), start[end:].decode()
                lines[condition.lineno - 1] = f"{head}True{tail}"
                return "".join(lines)
    raise ValueError(f"{conjunct} is no conjunct of this module")


def write_planted(plant: Plant, folder: Path) -> None:
    """Make `folder`/spec, a copy of the specification with the bug in it: put the folder first on a process's path."""
    shutil.copytree(ROOT, folder / "spec", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / (plant.module.replace(".", "/") + ".py")).write_text(planted_source(plant), encoding="utf-8")


# --- the bugs ----------------------------------------------------------------------------------------------------------------

# Which transitions use a guard.
USERS: Final = {"ENTRY-1": ("write_entry", "validate_entry"), "VALID-2": ("skip_absent", "validate_entry"),
                "TLB-7": ("walk_step",),
                "RING-1": ("fetch", "enter", "set_trap"), "RING-2": ("load_stack_segment", "jump", "call", "fast_trap"),
                "FLAT-1": ("set_handler", "switch_kernel_stack", "set_debug_64")}


def dropped_conjuncts() -> tuple[Plant, ...]:
    """One plant for every conjunct of every transition and of every guard that transitions share."""
    return tuple(Plant(f"drop-{c.id}", f"not asked: {c.text}", rule.function.__module__, drops=c.id,
                       first=USERS.get(rule.id, (rule.name,)))
                 for rule in RULES.values() if rule.kind in ("transition", "guard") for c in rule.conjuncts)


TABLES, FRAMES, REGISTERS, RESERVATION, TLB, PAGING, PROFILE = (
    "spec.tables", "spec.frames", "spec.registers", "spec.reservation", "spec.x86.tlb", "spec.x86.paging", "spec.profile")
DESCRIPTORS, RINGS, SEGMENTS, STACKS, TRANSFERS, INTERRUPTS = (
    "spec.descriptors", "spec.rings", "spec.x86.segments", "spec.x86.stacks", "spec.x86.transfers", "spec.x86.interrupts")

BY_HAND: Final = (
    Plant("old-reference-lost", "the replaced entry's reference is not given back", TABLES,
          "        slot_to_token(s, g, old, refers_by(s, g, t, old))\n        s.word[g, i] = adjusted(s, t, new)",
          "        s.word[g, i] = adjusted(s, t, new)", first=("write_entry",)),
    Plant("new-reference-kept-in-hand", "the slot does not take its reference over", TABLES,
          "        token_to_slot(s, g, new, need)\n", "", first=("write_entry",)),
    Plant("plain-reference-doubled", "a read-only mapping gives back two references", TABLES,
          "    if need == PLAIN:\n        s.held[f] += 1\n",
          "    if need == PLAIN:\n        s.held[f] += 2\n", first=("drain_entry",)),
    Plant("linear-use-not-counted", "a linear entry does not count for the table used", TABLES,
          "            s.linear[g] += 1\n            s.linear[f] -= 1\n",
          "            s.linear[g] += 1\n", first=("write_entry",)),
    Plant("linear-use-not-given-back", "draining a linear entry leaves the other table's count", TABLES,
          "            s.linear[g] -= 1\n            s.linear[f] += 1\n",
          "            s.linear[g] -= 1\n", first=("drain_entry",)),
    Plant("xens-slot-keeps-the-guests-word", "a validation leaves what the guest wrote in Xen's slot", TABLES,
          "            s.word[f, i] = xen_entry(s, f, i)\n",
          "            s.word[f, i] = s.word[f, i]\n", first=("validate_entry",)),
    Plant("xens-slots-end-early", "the last of Xen's slots is the guest's", TABLES,
          "t == s.profile.root and s.profile.xen_first <= i <= s.profile.xen_last\n",
          "t == s.profile.root and s.profile.xen_first <= i < s.profile.xen_last\n", first=("every_root_has_xens_slots",)),
    Plant("validated-one-entry-early", "a table is validated with its last entry unchecked", TABLES,
          "require(s.upto[f] == s.profile.entries, \"VALID-5.3\")", "require(s.upto[f] >= s.profile.entries - 1, \"VALID-5.3\")",
          first=("finish",)),
    Plant("entry-skipped-in-validation", "the check goes on two entries at a time", TABLES,
          "    s.upto[f] = Index(i + 1)\n", "    s.upto[f] = Index(i + 2)\n", first=("validate_entry",)),
    Plant("drained-entry-kept", "draining does not move on", TABLES,
          "        slot_to_token(s, f, e, refers_by(s, f, t, e))\n    s.upto[f] = i\n",
          "        slot_to_token(s, f, e, refers_by(s, f, t, e))\n", first=("drain_entry",)),
    Plant("any-lower-level", "an upper entry may name a table of any lower level", TABLES,
          "require(s.type[f] == t - 1, \"ENTRY-1.13\")", "require(s.type[f] < t, \"ENTRY-1.13\")", first=("write_entry",)),
    Plant("fast-path-ignores-rw", "an L1 entry turns writable on the fast path", TABLES,
          "        return (old ^ new) & s.profile.authority_l1 == 0\n",
          "        return (old ^ new) & (s.profile.authority_l1 - 2) == 0\n",
          first=("write_entry",)),
    Plant("fast-path-ignores-the-frame", "the lowest bit of the frame changes on the fast path", TABLES,
          "    return (old ^ new) & s.profile.authority_upper == 0\n",
          "    return (old ^ new) & (s.profile.authority_upper - 0x1000) == 0\n", first=("write_entry",)),
    Plant("begin-counts-no-reference", "beginning a validation takes no general reference", TABLES,
          "    s.filled[f] = Index(0)\n    s.type_count[f] += 1\n    s.ref_count[f] += 1\n",
          "    s.filled[f] = Index(0)\n    s.type_count[f] += 1\n",
          first=("begin_type",)),
    Plant("data-written-into-a-draining-table", "a store by Xen may hit a table that still holds references", TABLES,
          "require((s.type[f] == WRITABLE) | is_idle(s, f), \"WRITE-2.2\")",
          "require((s.type[f] == WRITABLE) | (s.type_count[f] == 0), \"WRITE-2.2\")", first=("write_data",)),
    Plant("type-outlives-a-flush-decision", "a retype needs no flush", FRAMES,
          "    return s.type[f] == t or s.stamp[f] != s.clock[CPU]\n", "    return True\n", first=("begin_type", "take_type")),
    Plant("flush-only-when-leaving-writable", "only a frame that was writable is flushed on a retype", FRAMES,
          "    return s.type[f] == t or s.stamp[f] != s.clock[CPU]\n",
          "    return s.type[f] == t or s.type[f] != WRITABLE or s.stamp[f] != s.clock[CPU]\n", first=("take_type",)),
    Plant("no-stamp-on-the-last-put", "the loss of the last typed reference is not stamped", FRAMES,
          "        s.validated[f] = False\n        s.stamp[f] = s.clock[CPU]\n",
          "        s.validated[f] = False\n", first=("drop_type",)),
    Plant("mark-outlasts-the-references", "a table stays validated without references", FRAMES,
          "        s.validated[f] = False\n        s.stamp", "        s.stamp", first=("drop_type",)),
    Plant("typed-reference-takes-no-plain-one", "a typed reference takes no general one", FRAMES,
          "    s.type_count[f] += 1\n    s.ref_count[f] += 1\n    s.held_type[f] += 1\n",
          "    s.type_count[f] += 1\n    s.held_type[f] += 1\n", first=("take_type",)),
    Plant("every-frame-may-be-used", "every domain may use the frames of all", FRAMES,
          "    return o == d or s.privileged[d] or s.lent[d, f] == s.term[f]\n",
          "    return True\n", first=("assign",)),
    Plant("loans-serve-as-tables", "a lent frame may be named by an upper entry", FRAMES,
          "    return may_use(s, d, f) if t == L1 else may_walk(s, d, f)\n", "    return may_use(s, d, f)\n",
          first=("write_entry",)),
    Plant("looked-at-before-it-is-asked-whose", "a frame's references decide before it is known whose the frame is", TABLES,
          "    require(may_name(s, s.owner[g], t, f), \"ENTRY-1.3\")     # the owner of the table may use the frame (W-2)\n"
          "    if need == PLAIN:\n"
          "        require(s.held[f] > 0, \"ENTRY-1.4\")             # a plain reference to it is in hand\n        return\n",
          "    if need == PLAIN:\n"
          "        require(s.held[f] > 0, \"ENTRY-1.4\")             # a plain reference to it is in hand\n"
          "        require(may_name(s, s.owner[g], t, f), \"ENTRY-1.3\")\n        return\n"
          "    require(may_name(s, s.owner[g], t, f), \"ENTRY-1.3\")     # the owner of the table may use the frame (W-2)\n",
          first=("write_entry",)),
    Plant("anothers-word-shows-in-m2p", "a machine-to-physical word is copied from a frame that may be another's", REGISTERS,
          "    s.m2p[f] = pfn\n", "    s.m2p[f] = s.m2p[pfn & 1]\n", first=("set_m2p",)),
    Plant("effect-before-a-guard", "a pin's reference is taken before the last conjunct", REGISTERS,
          "    require(not_(s.pinned[f]), \"PIN-1.5\")           # it is not pinned yet\n    s.held_type[f] -= 1\n",
          "    s.held_type[f] -= 1\n    require(not_(s.pinned[f]), \"PIN-1.5\")           # it is not pinned yet\n",
          first=("set_pinned",)),
    Plant("old-base-forgotten", "the old base's reference is lost", REGISTERS,
          "        s.held_type[s.base[d]] += 1\n", "        pass\n", first=("load_base",)),
    Plant("old-user-base-forgotten", "the old user base's reference is lost when a new one is loaded", REGISTERS,
          "        s.held_type[s.user_base[d]] += 1\n    s.has_user[d] = True\n", "        pass\n    s.has_user[d] = True\n",
          first=("load_user_base",)),
    Plant("pin-keeps-the-token", "a pin counts, and its reference stays in hand", REGISTERS,
          "    s.held_type[f] -= 1\n    s.pinned[f] = True\n", "    s.pinned[f] = True\n", first=("set_pinned",)),
    Plant("unpin-loses-the-reference", "unpinning drops the pin's reference on the floor", REGISTERS,
          "    s.pinned[f] = False\n    s.held_type[f] += 1\n", "    s.pinned[f] = False\n", first=("clear_pinned",)),
    Plant("no-stamp-when-freed", "the release of a frame is not stamped", RESERVATION,
          "    s.last_owner[f] = d\n    s.stamp[f] = s.clock[CPU]\n", "    s.last_owner[f] = d\n", first=("free_frame",)),
    Plant("last-owner-forgotten", "the pool does not remember whose a frame was", RESERVATION,
          "    s.last_owner[f] = d\n", "", first=("free_frame",)),
    Plant("owners-reference-not-marked", "a frame is handed out with a reference of nobody's", RESERVATION,
          "    s.alloc[f] = True\n", "", first=("assign",)),
    Plant("loan-outlives-the-owner", "handing a frame out does not end the loans of it", RESERVATION,
          "    s.term[f] += 1\n", "", first=("assign",)),
    Plant("release-keeps-the-reference", "giving a frame up does not drop its owner's reference", RESERVATION,
          "    s.alloc[f] = False\n    s.ref_count[f] -= 1\n", "    s.alloc[f] = False\n", first=("drop_alloc",)),
    Plant("pages-not-counted-down", "a released frame still counts against the limit", RESERVATION,
          "    s.pages[d] -= 1\n", "", first=("free_frame",)),
    Plant("flush-spares-a-clock", "a whole flush does not move the clock of those that spare global entries", TLB,
          "    s.clock[CPU] += 1\n    s.cr3_clock[CPU] += 1\n", "    s.clock[CPU] += 1\n", first=("flush",)),
    Plant("walk-forgets-read-only", "a walk's rights ignore upper entries", PAGING,
          "    both = rights & (e | THROUGH_XEN) & (RW | US | THROUGH_XEN)\n",
          "    both = e & (RW | US) | rights & THROUGH_XEN\n",
          first=("walk_step", "tlb_fill")),
    Plant("large-page-legal", "an upper entry may map a large page", PROFILE,
          "    forbidden_l1=PSE | G, forbidden_upper=PSE | G,",
          "    forbidden_l1=PSE | G, forbidden_upper=G,", first=("walk_step", "tlb_fill")),
    # descriptors and rings
    Plant("ring-0-descriptor-legal", "a guest may have descriptors of ring 0", DESCRIPTORS,
          "    if dpl_of(q) == 0:\n        return False\n", "", first=("every_segment_that_a_guest_can_load_is_its_own",)),
    Plant("gates-selector-unchecked", "a call gate may name any code", DESCRIPTORS,
          "is_call_gate(q) and is_guest_code_selector(s, gate_selector(q)) and q >> 37", "is_call_gate(q) and q >> 37",
          first=("every_gate_that_a_guest_can_use_leads_to_a_guest",)),
    Plant("every-gate-legal", "gates of the IDT, task gates and TSSs are legal", DESCRIPTORS,
          "        return is_call_gate(q) and is_guest_code_selector(s, gate_selector(q)) and q >> 37 & 7 == 0\n",
          "        return True\n", first=("what_a_checked_table_offers_is_a_guests",)),
    Plant("expand-down-legal", "segments that expand down are legal, as in the releases (W-24)", DESCRIPTORS,
          "    return not is_expand_down(q) and base_of(q)", "    return base_of(q)",
          first=("every_access_through_a_segment_ends_below_xen",)),
    Plant("base-and-limit-wrap", "the end of a segment is computed in 32 bits", DESCRIPTORS,
          "base_of(q) + limit_of(q) < s.profile.guest_end", "(base_of(q) + limit_of(q)) & 0xFFFFFFFF < s.profile.guest_end",
          first=("every_access_through_a_segment_ends_below_xen",)),
    Plant("segment-reaches-one-byte-into-xen", "a segment may end with Xen's first byte", DESCRIPTORS,
          "base_of(q) + limit_of(q) < s.profile.guest_end", "base_of(q) + limit_of(q) <= s.profile.guest_end",
          first=("every_access_through_a_segment_ends_below_xen",)),
    Plant("xens-code-named-by-gates", "gates and handlers may name Xen's own descriptors", DESCRIPTORS,
          "sel & RPL == 1 and (sel & TI != 0 or i < Xen2003.RESERVED or i >= Xen2003.RESERVED_END)", "sel & RPL == 1",
          first=("every_handler_is_a_guests",)),
    Plant("xens-place-may-be-written", "an update replaces Xen's last descriptor", DESCRIPTORS,
          "    return start <= i and i < start + s.filled[f]\n", "    return start <= i and i < start + s.filled[f] - 2\n",
          first=("write_descriptor", "fill_reserved")),
    Plant("xens-entries-on-every-page", "a frame with Xen's entries may be any page of a GDT (W-27)", DESCRIPTORS,
          "    return s.filled[f] == (s.profile.reserved_words if n == 0 else 0)\n",
          "    return n != 0 or s.filled[f] == s.profile.reserved_words\n",
          first=("every_gate_that_a_guest_can_use_leads_to_a_guest",)),
    Plant("xens-entries-half-filled", "a GDT is installed with some of Xen's entries missing", DESCRIPTORS,
          "    return s.filled[f] == (s.profile.reserved_words if n == 0 else 0)\n",
          "    return s.filled[f] == 0 or n == 0\n", first=("xens_descriptors_are_always_in_force",)),
    Plant("descriptor-checked-every-other", "the check of a table goes on two descriptors at a time", DESCRIPTORS,
          "    s.upto[f] = Index(i + s.profile.descriptor_words)\n",
          "    s.upto[f] = Index(i + 2 * s.profile.descriptor_words)\n",
          first=("validate_descriptor",)),
    Plant("blank-stretch-ends-early", "a stretch of blank descriptors takes one more than was looked at", DESCRIPTORS,
          "require(s.blank(f, s.upto[f], end), \"DESC-5.7\")",
          "require(s.blank(f, s.upto[f], Index(end - s.profile.descriptor_words)), \"DESC-5.7\")", first=("skip_blank",)),
    Plant("absent-by-the-bit-of-entries", "what is no present page-table entry is taken for no descriptor", DESCRIPTORS,
          "require(s.blank(f, s.upto[f], end), \"DESC-5.7\")", "require(s.absent(f, s.upto[f], end), \"DESC-5.7\")",
          first=("skip_blank",)),
    Plant("gdt-page-keeps-the-token", "a page is installed and its reference stays in hand", DESCRIPTORS,
          "    s.held_type[f] -= 1\n    s.has_gdt[d, n] = True\n", "    s.has_gdt[d, n] = True\n", first=("install_gdt",)),
    Plant("ldt-page-loses-its-reference", "an LDT's page is given up and its reference is lost", DESCRIPTORS,
          "    s.has_ldt[d, n] = False\n    s.held_type[s.ldt[d, n]] += 1\n", "    s.has_ldt[d, n] = False\n",
          first=("unmap_ldt",)),
    Plant("descriptors-are-no-checked-type", "a frame of descriptors is not among the types that are checked before use", FRAMES,
          "    return is_table(s, t) or is_descriptors(s, t)\n", "    return is_table(s, t)\n",
          first=("validate_descriptor", "finish")),
    Plant("adjusted-keeps-privilege", "4.17 stores a segment with the privilege that the guest asked for", DESCRIPTORS,
          "        return q | 3 << DPL_SHIFT\n", "        return q\n", first=("what_a_checked_table_offers_is_a_guests",)),
    Plant("restored-for-ring-0", "data segments are restored in ring 0 and kept whatever they are", RINGS,
          "keep(load_data(s.fetched[d, Index(selector)], selector, 0), ring_of(s, d))",
          "load_data(s.fetched[d, Index(selector)], selector, 0)",
          first=("reload",)),
    Plant("ldt-looked-up-as-gdt", "the limit of the LDT bounds both tables", RINGS,
          "    if selector & TI != 0:\n        return i < s.ldt_entries[d]\n", "    return i < s.ldt_entries[d]\n",
          first=("xens_descriptors_are_always_in_force",)),
    Plant("hypercalls-vector-as-a-fast-trap", "the vector of hypercalls may be a fast trap's", RINGS,
          "    return v == 0x80 or (", "    return v == 0x80 or v == 0x82 or (", first=("every_trap_gets_to_xen",)),
    Plant("xens-entries-beyond-the-limit", "a GDT may be so short that Xen's own descriptors are beyond its limit", DESCRIPTORS,
          "require((entries >= Xen2003.RESERVED_END) |", "require((entries >= Xen2003.RESERVED) |", first=("set_gdt_entries",)),
    Plant("fetched-beyond-the-page", "a look-up reads the descriptor that follows the one it should", RINGS,
          "Index((selector >> 3 & 0x1FF) * s", "Index(((selector >> 3) + 1 & 0x1FF) * s",
          first=("xens_descriptors_are_always_in_force",)),
    Plant("gate-into-ring-0", "a gate of the IDT leads from a guest's ring to wherever it says", INTERRUPTS,
          "    if not is_code(q) or dpl_of(q) > cpl:\n        raise Fault(GP, error_code(target) | ext)",
          "    if not is_code(q):\n        raise Fault(GP, error_code(target) | ext)", first=("fast_trap",)),
    Plant("stack-of-the-callers", "a call to an inner ring stays on the caller's stack", TRANSFERS,
          "    inner = r._replace(cs=cs, ss=ss,", "    inner = r._replace(cs=cs, ss=r.ss,", first=("call",)),
    Plant("stack-of-any-ring", "SS takes a segment of any privilege", SEGMENTS,
          "    if selector & RPL != ring or not is_writable(q) or dpl_of(q) != ring:\n",
          "    if selector & RPL != ring or not is_writable(q):\n", first=("load_stack_segment",)),
    Plant("jump-ignores-privilege", "a jump leads to code of any ring", TRANSFERS,
          "    return selector & RPL <= cpl and dpl_of(q) == cpl\n", "    return selector & RPL <= cpl\n", first=("jump",)),
    Plant("return-to-any-ring", "a return leads to code of any ring", TRANSFERS,
          "    return ring >= cpl and (dpl_of(q) <= ring if is_conforming(q) else dpl_of(q) == ring)\n",
          "    return dpl_of(q) <= ring if is_conforming(q) else dpl_of(q) == ring\n", first=("far_ret",)),
)


def all_plants() -> tuple[Plant, ...]:
    """Every planted bug: by hand first, then the dropped conjuncts."""
    return BY_HAND + dropped_conjuncts()
