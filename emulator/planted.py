"""Planted bugs: each is a small change to the text of the clean hypervisor, so that an oracle can show that it would find it.

The clean code knows nothing of them.  While a bug is planted its methods are replaced in their class, so it also survives a reset
to another setup; afterwards the class is as it was.  `historic` names the real bug of the same kind in spec/historic.json.
"""
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from emulator.delivery import Delivery
from emulator.descriptors import Descriptors
from emulator.errors import HarnessError
from emulator.guests import GuestRun
from emulator.hypervisor import Hypervisor
from emulator.machine import Machine
from emulator.present import Present
from emulator.target import EmulatorTarget
from emulator.transfers import Transfers
from emulator.traps import Traps
from emulator.ways import Ways


@dataclass(frozen=True, slots=True)
class Edit:
    """One piece of text in one method, and what stands there instead."""
    method: str
    old: str
    new: str
    owner: type = Hypervisor

    def edited(self) -> Callable[..., Any]:
        """The method with the text replaced; the text must occur in it once."""
        method = getattr(self.owner, self.method)
        source = textwrap.dedent(inspect.getsource(method))
        if source[0] == " ":                    # a listing in it begins at the margin
            source = "if True:\n" + source
        if source.count(self.old) != 1:
            raise HarnessError(f"{self.method} has {source.count(self.old)} times {self.old!r}")
        names: dict[str, Any] = {}
        exec(source.replace(self.old, self.new), vars(sys.modules[self.owner.__module__]), names)
        edited: Callable[..., Any] = names[self.method]
        return edited


@dataclass(frozen=True, slots=True)
class Plant:
    """A bug: what is wrong, the real bug it stands for (or ""), and the edits that make it."""
    name: str
    summary: str
    historic: str
    edits: tuple[Edit, ...]

    def plant(self, target: EmulatorTarget) -> None:
        """Put the bug in place."""
        for edit in self.edits:
            setattr(edit.owner, edit.method, edit.edited())
        target.hypervisor_changed(trusted=False)


@contextmanager
def planted(target: EmulatorTarget, name: str) -> Iterator[Plant]:
    """Plant a bug for a while.  It takes effect at once; reset the target when you enter and when you leave."""
    plant = PLANTS[name]
    clean = {(edit.owner, edit.method): getattr(edit.owner, edit.method) for edit in plant.edits}
    try:
        plant.plant(target)
        yield plant
    finally:
        for (owner, method), function in clean.items():
            setattr(owner, method, function)
        target.hypervisor_changed(trusted=True)


def _plants() -> Iterator[Plant]:
    def bug(name: str, summary: str, *edits: Edit, historic: str = "") -> Plant:
        return Plant(name, summary, historic, edits)

    # --- who may use a frame
    yield bug("owner-unasked-read-only", "A read-only mapping is made of any frame, whoever owns it.",
              Edit("get_page", "if word & OWNER != owner and", "if rw and word & OWNER != owner and"))
    yield bug("owner-unasked-writable", "A writable mapping is made of any domain's frame.",
              Edit("get_page", "and not self.usable(owner, word)", "and not self.usable(0 if rw else owner, word)"))
    yield bug("owner-unasked-l1-table", "An L2 entry may name an L1 table of any domain.",
              Edit("take_l2e", "self.get_table(entry >> 12, L1, owner)", "self.get_table(entry >> 12, L1, 0)"))
    yield bug("owner-unasked-pin", "A domain may pin the tables of any domain.",
              Edit("pin", "self.get_table(f, kind, self.caller)", "self.get_table(f, kind, 0)"))
    yield bug("owner-unasked-unpin", "A domain may unpin the tables of any domain.",
              Edit("unpin", "not self.usable(self.caller, word) or ", ""))
    yield bug("owner-unasked-machphys", "A domain may set the machine-to-physical word of any domain's frame.",
              Edit("machphys_update", "self.usable(self.caller, ", "self.usable(0, "))
    yield bug("owner-unasked-base", "A domain may run on the root table of any domain.",
              Edit("new_baseptr", "self.get_table(f, L2, self.caller)", "self.get_table(f, L2, 0)"))
    yield bug("caller-judges-anothers-table", "An entry of another's table is judged as one of the caller's, as in 1.2 (W-2).",
              Edit("mod_l1_entry", "self.pg[i >> 10] & OWNER", "self.caller"))
    yield bug("free-frames-for-domain-0", "Domain 0 may use frames that no domain owns, as in 1.2 (W-1).",
              Edit("usable", "(owner == 0 and word < NO_DOMAIN)", "(owner == 0 and word >> 48 != 0x7FF2)"))

    # --- counts
    yield bug("old-entry-not-put", "An L1 entry that replaces another does not give back what the old one held.",
              Edit("mod_l1_entry", "if old & P:\n                self.put_page(old >> 12, old & RW)\n    elif", "pass\n    elif"))
    yield bug("rw-change-not-counted", "An L1 entry that turns writable takes no typed reference.",
              Edit("mod_l1_entry", "(FRAME | RW | P)", "(FRAME | P)"))
    yield bug("unpin-keeps-a-reference", "Unpinning gives back the typed reference but leaks the general one.",
              Edit("unpin", "word & ~PINNED", "(word & ~PINNED) + GENERAL_REF"), historic="PRE-2004-02")
    yield bug("base-switch-puts-the-new-base", "NEW_BASEPTR gives back a reference on the new base in place of the old one.",
              Edit("new_baseptr", "self.put_table(self.base[self.current], L2)", "self.put_table(f, L2)"), historic="PRE-2004-03")
    yield bug("base-switch-keeps-the-old-base", "NEW_BASEPTR gives back nothing.",
              Edit("new_baseptr", "self.put_table(self.base[self.current], L2)", "pass"))
    yield bug("put-on-refused-pin", "A refused pin gives back a reference that was never taken.",
              Edit("pin", "return False", "self.pg[f] -= GENERAL_REF if self.pg[f] & REFS else 0\n        return False"),
              historic="PRE-2004-09d")
    yield bug("put-on-owner-mismatch", "A mapping that is refused for its owner takes a reference from the owner.",
              Edit("get_page", "self.usable(owner, word):\n        return False",
                   "self.usable(owner, word):\n        self.pg[f] -= GENERAL_REF if word & REFS else 0\n        return False"),
              historic="PRE-2009-03")
    yield bug("refused-machphys-keeps-a-reference", "A refused MACHPHYS leaks a general reference on the frame.",
              Edit("machphys_update", "return False",
                   "if f < self.frames:\n            self.pg[f] += GENERAL_REF\n        return False"),
              historic="XSA-113")
    yield bug("pin-twice", "A frame that is pinned can be pinned again, and holds another reference.",
              Edit("pin", "self.pg[f] & PINNED or ", ""))
    yield bug("last-put-keeps-entries", "The last reference on an L1 table goes without giving back what its entries hold.",
              Edit("put_table", "self.devalidate_l1(f)", "pass"), historic="XSA-242")
    yield bug("self-map-counted", "An L2 entry that maps its own table takes a reference that is never given back.",
              Edit("take_l2e", "return not entry & RW",
                   "self.pg[f] += 0 if entry & RW else GENERAL_REF\n        return not entry & RW"),
              historic="XSA-240")
    yield bug("read-only-entries-not-counted", "A read-only L1 entry takes and gives no reference.",
              Edit("get_page", "self.pg[f] = word + GENERAL_REF", "pass"), Edit("put_page", "self.pg[f] -= GENERAL_REF", "pass"),
              Edit("validate_l1", "np.uint64(GENERAL_REF)", "np.uint64(0)"),
              Edit("devalidate_l1", "np.uint64(GENERAL_REF)", "np.uint64(0)"))

    # --- validation
    yield bug("l1-validation-stops-early", "The last entry of an L1 table is never looked at when it is validated.",
              Edit("validate_l1", "1024", "1023"), Edit("devalidate_l1", "1024", "1023"))
    yield bug("l2-validation-stops-early", "The last guest entry of an L2 table is never looked at when it is validated.",
              Edit("validate_l2", "XEN_SLOT", "XEN_SLOT - 1"), Edit("devalidate_l2", "XEN_SLOT", "XEN_SLOT - 1"))
    yield bug("rollback-incomplete", "When an L2 table is refused, the first L1 table that it had taken is not given back.",
              Edit("validate_l2", "reversed(journal)", "reversed(journal[1:])"), historic="XSA-299d")
    yield bug("refused-table-keeps-its-type", "A table that is refused keeps the references of its own type.",
              Edit("get_table", "self.pg[f] = word\n", "pass\n"), historic="XSA-58")
    yield bug("flags-unchecked-in-validation", "Illegal bits in the entries of a table pass when it is validated as L1.",
              Edit("validate_l1", "((entries & L1_ILLEGAL) != 0) | ", ""), Edit("validate_few", "entry & L1_ILLEGAL or ", ""))
    yield bug("global-at-l1", "An L1 entry may have the global bit.", Edit("mod_l1_entry", "L1_ILLEGAL", "0x80"))
    yield bug("pat-at-l1", "An L1 entry may have the PAT bit.", Edit("mod_l1_entry", "L1_ILLEGAL", "0x100"),
              historic="PRE-2007-10b")
    yield bug("pse-in-fast-path", "An L2 entry that keeps its frame may turn into a large page.",
              Edit("mod_l2_entry", "new & L2_ILLEGAL or ", ""), historic="XSA-148")
    yield bug("global-at-l2", "An L2 entry may have the global bit.", Edit("take_l2e", "L2_ILLEGAL", "0x80"))
    yield bug("first-xen-slot-open", "A guest may change the first of Xen's slots.",
              Edit("mod_l2_entry", ">= XEN_SLOT", "> XEN_SLOT"))
    yield bug("last-xen-slots-open", "A guest may change Xen's slots above its linear page table.",
              Edit("mod_l2_entry", "i & 1023 >= XEN_SLOT", "XEN_SLOT <= i & 1023 <= Xen2003.LINEAR_SLOT"))
    yield bug("self-map-writable", "An L2 entry that maps its own table may be writable.",
              Edit("take_l2e", "return not entry & RW", "return True"), historic="SEC-2004-LIN")
    yield bug("self-map-turns-writable", "A read-only self-map may be turned writable, as in 1.2 (W-3).",
              Edit("mod_l2_entry", " or (new & RW and new >> 12 == f)", ""))
    yield bug("self-map-judged-as-l1", "update_va_mapping through a self-map judges an L2 entry like one of L1, as in 1.2 (W-4).",
              Edit("update_va_mapping", "self.pg[pde >> 12] & TYPE == L2", "i & 1023 >= XEN_SLOT"))

    # --- the TLB
    yield bug("no-flush-on-type-change", "A frame that becomes a table may still be written through cached translations.",
              Edit("retyped", "self.flush_due = True", "pass"), historic="PRE-2004-09e")
    yield bug("flush-decided-by-new-type", "The TLB is not flushed when a frame turns writable, as in 1.2 (W-9).",
              Edit("retyped", "if self", "if wanted != WRITABLE and self"), historic="XSA-408")
    yield bug("stale-time-stamp", "The time at which a writable mapping went away is noted one flush too early.",
              Edit("put_page", "= self.clock", "= self.clock - 1"), historic="XSA-241")
    yield bug("tlb-flush-ignored", "The command TLB_FLUSH does nothing.",
              Edit("extended", "self.flush_due = True", "pass"))
    yield bug("invlpg-ignored", "The command INVLPG does nothing.", Edit("extended", "self.invlpg(value & ~0xFF)", "pass"))
    yield bug("flush-flag-ignored", "update_va_mapping ignores the flag that asks for a flush.",
              Edit("flush_mapping", "self.flush_due = True", "pass"))
    yield bug("invlpg-flag-ignored", "update_va_mapping ignores the flag that asks for INVLPG.",
              Edit("flush_mapping", "self.invlpg(page << 12)", "pass"))
    yield bug("no-flush-on-base-switch", "NEW_BASEPTR leaves the translations of the old root table cached.",
              Edit("new_baseptr", "self.flush_due = True", "pass"))
    yield bug("no-flush-on-domain-switch", "A domain runs with translations that another left in the TLB.",
              Edit("serve", "self.flush()", "self.engine.cpu.cr3 = self.hypervisor.root << 2", Machine))
    yield bug("no-flush-before-reuse", "A released frame is handed out while its old owner's translations may be cached.",
              Edit("hand_out", "self.flush_due = True", "pass"))

    # --- batches and errors
    yield bug("batch-goes-on", "A refused request does not end the batch, and the call succeeds.",
              Edit("mmu_update", "return -EINVAL", "continue"))
    yield bug("unreadable-request-invalid", "A request that cannot be read gives EINVAL, not EFAULT.",
              Edit("mmu_update", "if i < 0:\n                return -EFAULT", "if i < 0:\n                return -EINVAL"))
    yield bug("missing-table-invalid", "update_va_mapping below a missing L1 table gives EINVAL, not EFAULT.",
              Edit("update_va_mapping", "-EFAULT", "-EINVAL"))
    yield bug("count-unsigned", "A negative count of requests is taken for a large one.",
              Edit("mmu_update", "count >> 31", "count == 0"))
    yield bug("multicall-ignores-faults", "A multicall whose list cannot be read further succeeds.",
              Edit("multicall", "return -EFAULT", "return 0"))
    yield bug("unknown-memory-op-succeeds", "An unknown operation of dom_mem_op gives 0, as in 1.0.",
              Edit("dom_mem_op", "return -ENOSYS", "return 0"))
    yield bug("command-range-unchecked", "TLB_FLUSH and INVLPG accept a frame number out of range.",
              Edit("extended", "if f >= self.frames:", "if f >= self.frames and command <= Xen2003.NEW_BASEPTR:"))
    yield bug("ldt-one-too-many", "SET_LDT accepts 8,193 entries.",
              Edit("set_ldt", "entries > Xen2003.MAX_LDT", "entries > Xen2003.MAX_LDT + 1", Descriptors))

    # --- guest memory
    yield bug("pointer-range-unchecked", "Arguments of hypercalls are read from Xen's own memory too.",
              Edit("read", "> GUEST_END", "> 1 << 32"), historic="PRE-2004-09a")
    yield bug("copy-ignores-read-only", "Xen writes results to guest pages that are mapped read-only.",
              Edit("writable", "pde & pte & RW", "pde & pte & P"))
    yield bug("copy-runs-into-next-frame", "An argument that spans two pages is read on in the next frame.",
              Edit("read", "i = self.walk(address)", "i = self.walk(va) + (address >> 2) - (va >> 2)"))

    # --- plain stores
    yield bug("normal-into-data", "NORMAL writes into a frame that is in use for data.",
              Edit("normal_update", "if not word & TYPED:", "if not word & TYPED or word & TYPE == WRITABLE:"),
              historic="PRE-2003-10a")
    yield bug("unchecked-for-all", "Every domain may use UNCHECKED.", Edit("unchecked_update", "self.caller == 0 and ", ""))
    yield bug("linear-map-open", "NORMAL takes addresses in Xen's hole, where its linear map shows the guest's tables (W-7).",
              Edit("target", "ptr >= HOLE", "ptr >= 1 << 32"))

    # --- the reservation
    yield bug("increase-does-not-zero", "A frame is handed out with the contents that its last owner left.",
              Edit("hand_out", "self.bytes[f * PAGE_SIZE:(f + 1) * PAGE_SIZE] = _ZERO_PAGE", "pass"), historic="XSA-100")
    yield bug("increase-ignores-what-is-held", "The limit of frames is compared with the increase alone.",
              Edit("increase", "self.pages[self.current] + size", "size"))
    yield bug("increase-ignores-the-slack", "An increase may take the last 512 frames.",
              Edit("increase", "size + Xen2003.SLACK", "size"))
    yield bug("decrease-of-a-mapped-frame", "A frame that is mapped read-only can be released.",
              Edit("decrease", "(OWNER | REFS | TYPED)", "(OWNER | TYPED)"), historic="PRE-2004-05b")
    yield bug("decrease-unpins", "Releasing a frame unpins it first.",
              Edit("decrease", "f = entry[0]\n", "f = entry[0]\n        if f < self.frames:\n            self.unpin(f)\n"),
              historic="XSA-252")
    yield bug("decrease-undone-by-an-error", "A decrease that ends in an error does not count what it has released.",
              Edit("decrease", "return -EINVAL", "self.pages[self.current] += (at - pages) // 4\n            return -EINVAL"))

    # --- descriptors
    yield bug("ring-0-descriptor", "A present descriptor may be one of ring 0.",
              Edit("legal", "not high & DPL", "False", Descriptors),
              Edit("all_legal", "not (high & DPL).all()", "False", Descriptors))
    yield bug("call-gate-target-unchecked", "A call gate may lead anywhere, also into Xen.",
              Edit("legal", "is_guest_code(low >> 16)", "True", Descriptors),
              Edit("gates_legal", "(own | (selector == Xen2003.RING1_CS))", "(selector == selector)", Descriptors))
    yield bug("segment-one-byte-too-long", "A segment may reach the first byte of Xen's.",
              Edit("legal", "< Xen2003.GUEST_END", "<= Xen2003.GUEST_END", Descriptors),
              Edit("segments_legal", "< Xen2003.GUEST_END", "<= Xen2003.GUEST_END", Descriptors))
    yield bug("expand-down-segment", "A data segment may expand down and so reach Xen, as in 1.2 (W-24).",
              Edit("legal", "high & DATA_DIRECTION == EXPANDS_DOWN", "False", Descriptors),
              Edit("segments_legal", "(high & DATA_DIRECTION != EXPANDS_DOWN)", "True", Descriptors))
    yield bug("system-descriptors", "Any system descriptor passes for a call gate if the rest is right.",
              Edit("legal", "high & KIND == CALL_GATE and ", "", Descriptors),
              Edit("gates_legal", "KIND | NO_PARAMETERS", "CALL_GATE | NO_PARAMETERS", Descriptors))
    yield bug("last-descriptor-unseen", "The last descriptor of a frame is never looked at.",
              Edit("all_legal", "(f + 1) << 10", "((f + 1) << 10) - 2", Descriptors))
    yield bug("gdt-first-frame-only", "Of a list of frames only the first is checked, as in 1.2 (W-25).",
              Edit("set_gdt", "all(map(self.can_be_gdt, frames))", "self.can_be_gdt(frames[0])", Descriptors))
    yield bug("gdt-stale-type", "A frame that was a page of a GDT once is not checked again, as in 1.2 (W-25).",
              Edit("can_be", "if word & TYPED:", "if word & TYPED or word & TYPE == kind:", Descriptors))
    yield bug("gdt-of-others-frames", "Domain 0 may have a GDT in another domain's frames.",
              Edit("can_be_gdt", "hypervisor.pg[f] & OWNER == hypervisor.caller",
                   "hypervisor.usable(hypervisor.caller, hypervisor.pg[f])", Descriptors))
    yield bug("gdt-without-room", "A GDT may end before the last of Xen's own entries.",
              Edit("set_gdt", "< Xen2003.RESERVED_END", "< Xen2003.RESERVED_END - 1", Descriptors))
    yield bug("gdt-xens-entries-twice", "The frame with Xen's own descriptors may also be a later page (W-27).",
              Edit("keeps_xens_apart", "return ", "return True or ", Descriptors))
    yield bug("gdt-untyped", "A page of a GDT is held without a typed reference, so that the guest may write it.",
              Edit("take", "+ BOTH", "+ (BOTH if kind == LDT else BOTH - 1)", Descriptors),
              Edit("put", "- BOTH", "- (BOTH if hypervisor.pg[f] & TYPE == LDT else BOTH - 1)", Descriptors))
    yield bug("gdt-old-pages-kept", "The pages of the old GDT stay in use.", Edit("set_gdt", "self.put(f)", "pass", Descriptors))
    yield bug("gdt-half-filled", "Not all of Xen's own descriptors are put into a new GDT.",
              Edit("fill", "len(self.xens)] = self.xens", "12] = self.xens[:12]", Descriptors))
    yield bug("gdt-no-flush", "The TLB is not flushed when another GDT is installed.",
              Edit("set_gdt", "self.hypervisor.flush_due = True", "pass", Descriptors))
    yield bug("xens-entry-replaced", "update_descriptor replaces Xen's own descriptors in the GDT.",
              Edit("update_descriptor", " and not self.is_xens(f, i >> 1 & IN_A_PAGE - 1)", "", Descriptors))
    yield bug("descriptor-into-a-table", "update_descriptor writes into an L1 table in use.",
              Edit("update_descriptor", "kind != LDT", "kind not in (LDT, 1 << 44)", Descriptors))
    yield bug("descriptor-of-others", "Domain 0 may replace descriptors in another domain's frames.",
              Edit("update_descriptor", "word & OWNER != hypervisor.caller",
                   "not hypervisor.usable(hypervisor.caller, word)", Descriptors))
    yield bug("ldt-kept-on-set-ldt", "SET_LDT leaves the pages of the old LDT mapped.",
              Edit("set_ldt", "self.drop_ldt(kernel.domid)", "pass", Descriptors))
    yield bug("ldt-kept-on-base-switch", "NEW_BASEPTR leaves the pages of the LDT mapped.",
              Edit("new_baseptr", "self.descriptors.drop_ldt(self.current)", "pass"))
    yield bug("ldt-kept-when-unmapped", "A page of the LDT stays in use when the guest gives up its mapping.",
              Edit("put_page", "self.descriptors.drop_ldt(self.pg[f] >> 48)", "pass"),
              Edit("devalidate_l1", "self.descriptors.unmapped(frames[~writable])", "pass"))
    yield bug("ldt-no-flush", "The TLB is not flushed when the LDT's pages are dropped.",
              Edit("drop_ldt", "self.hypervisor.flush_due = True", "pass", Descriptors))
    yield bug("ldt-unchecked", "A page of the LDT is mapped whatever it holds.",
              Edit("map_ldt", "not self.can_be(i >> 10, LDT)",
                   "(hypervisor.pg[i >> 10] & TYPED and hypervisor.pg[i >> 10] & TYPE != LDT)", Descriptors))
    yield bug("ldt-still-in-the-window", "Pages of an LDT that was dropped stay mapped for the processor.",
              Edit("drop_ldt", "self.present.ldt(kernel.ldt)", "pass", Descriptors))
    yield bug("gdt-limit", "The processor's limit of the GDT is one descriptor too high.",
              Edit("in_force", "8 * kernel.gdt_entries - 1", "8 * kernel.gdt_entries + 7", Descriptors))
    yield bug("gdt-of-the-last-domain", "The processor keeps the descriptor tables of the domain that ran before.",
              Edit("switched", "self.present.show(kernel or Kernel(self.hypervisor.current))", "pass", Descriptors))
    yield bug("ldt-limit", "The processor's limit of the LDT is one descriptor too high.",
              Edit("guest_tables", "8 * entries - 1", "8 * entries + 7", Machine))
    yield bug("ldt-never-mapped", "The guest hears of every page of its LDT that is not mapped yet.",
              Edit("map_ldt", "self.hypervisor.descriptors.map_ldt(offset // PAGE_SIZE)", "0", Machine))

    # --- where kernels are entered
    yield bug("trap-selector-unchecked", "A handler may lie under one of Xen's own selectors.",
              Edit("set_trap_table", "not is_guest_code(first >> 16)", "first >> 16 & 3 != 1", Traps))
    yield bug("callback-selector-of-32-bits", "Callback selectors are checked as 32 bits and loaded as 16, as in 1.2 (W-31).",
              Edit("set_both", "not is_guest_code(cs & 0xFFFF)", "not is_guest_code(cs)", Traps))
    yield bug("stack-of-ring-0", "The kernel's stack segment may have RPL 0.",
              Edit("stack_switch", "ss & 3 == 0", "False", Traps))
    yield bug("fast-hypercall", "Vector 0x82, which is Xen's, may be a fast trap.",
              Edit("set_fast_trap", "vector not in FAST", "vector not in FAST | {0x82}", Traps))
    yield bug("fast-trap-masks-nothing", "A handler that wants events masked may be entered by a fast trap.",
              Edit("set_fast_trap", " or kernel.handlers.get(vector, NO_HANDLER).flags & Xen2003.EVENTS_MASKED", "", Traps))
    yield bug("breakpoint-in-xen", "A breakpoint may lie in Xen.",
              Edit("set_debugreg", "value > Xen2003.BREAKPOINT_END", "False", Traps))
    yield bug("debug-registers-guarded", "A guest may have its access to debug registers trap in Xen.",
              Edit("set_debugreg", "value & DR7_GUARD or ", "", Traps))

    # --- frames that Xen stores
    yield bug("frame-words-swapped", "A bounce frame holds EIP where CS belongs, and CS where EIP belongs.",
              Edit("frame", """8b 15 =CS                     | mov edx, ds:[CS]
    65 89 16                      | mov gs:[esi], edx
    83 ee 04                      | sub esi, 4
    8b 15 =EIP                    | mov edx, ds:[EIP]""", """8b 15 =EIP | mov edx, ds:[EIP]
    65 89 16   | mov gs:[esi], edx
    83 ee 04   | sub esi, 4
    8b 15 =CS  | mov edx, ds:[CS]""", Ways))
    yield bug("frame-on-the-interrupted-stack", "A frame for what an application did goes onto the application's own stack.",
              Edit("frame", "f6 05 =CS 02", "f6 05 =CS 00", Ways))
    yield bug("frame-beyond-the-limit", "A frame in ring 1 is stored through a flat segment, whatever the limit of the kernel's.",
              Edit("frame", """inner:
    8e e8                         | mov gs, eax""", """inner:
    b9 21 08 00 00                | mov ecx, RING1_DS
    8e e9                         | mov gs, ecx""", Ways))
    yield bug("frame-without-the-upper-stack", "The stack pointer of an application is stored where its stack segment belongs.",
              Edit("frame", "8b 15 =SS  ", "8b 15 =ESP ", Ways))
    yield bug("handler-with-tf", "TF stays set when a handler is entered.", Edit("frame", "ff be fc ff", "ff bf fc ff", Ways))
    yield bug("handler-with-nt", "NT stays set when a handler is entered.", Edit("frame", "ff be fc ff", "ff fe fc ff", Ways))
    yield bug("fault-address-missing", "The frame of a page fault has no CR2.", Edit("bounce", "74 >framed", "eb >framed", Ways))
    yield bug("fault-address-twice", "The frame of a page fault has CR2 where its error code belongs.",
              Edit("bounce", "8b 15 =ERROR  ", "8b 15 =ADDRESS", Ways))
    yield bug("unwritable-stack-not-killing", "A domain whose kernel has no stack to put a frame on goes on where it was.",
              Edit("perform", "Outcome(KILLED)", "Outcome(landing=tuple(getattr(action.at, n) for n in action.at.__slots__))",
                   Transfers))
    yield bug("error-code-always", "Every exception pushes an error code.",
              Edit("exception", "1 if vector in WITH_ERROR_CODE else 0", "1", Delivery))
    yield bug("error-code-missing", "Only page faults push an error code.",
              Edit("exception", "1 if vector in WITH_ERROR_CODE else 0", "0", Delivery))

    # --- the way out
    yield bug("failsafe-words-in-wrong-order", "The failsafe frame has DS and GS in each other's place.",
              Edit("failsafe", "8b 15 =DS  ", "8b 15 =GS  ", Ways))
    yield bug("failsafe-with-a-segment", "The failsafe callback is entered with the kernel's stack segment in GS.",
              Edit("failsafe", """8e e0                         | mov fs, eax
    8e e8                         | mov gs, eax""", "8e e0 | mov fs, eax", Ways))
    yield bug("failsafe-never", "A domain whose segments cannot be restored is killed.",
              Edit("own_fault", "0f 82 >>failsafe", "0f 82 >>killed", Ways))
    yield bug("failsafe-at-the-event-callback", "Xen takes the event callback for the failsafe callback.",
              Edit("show", "kernel.failsafe.cs, kernel.failsafe.ip", "kernel.event.cs, kernel.event.ip", GuestRun))
    yield bug("data-segment-not-restored", "ES is not restored: it gets the selector of DS.",
              Edit("way_out", "36 8e 05 =ES  ", "36 8e 05 =DS  ", Ways))
    yield bug("event-mask-not-cleared", "The master bit of the event mask stays set when the callback is entered.",
              Edit("way_out", "0d 00 00 00 80", "0d 00 00 00 00", Ways))
    yield bug("delivered-events-stay-selected", "The events that were delivered stay selected in the mask.",
              Edit("way_out", "0d 00 00 00 80                | or eax, ", "b8 00 00 00 80 | mov eax, ", Ways))
    yield bug("events-though-masked", "Events are delivered though the master bit of the mask is clear.",
              Edit("way_out", "79 >leave", "90 90", Ways))
    yield bug("events-not-selected", "The callback is entered though the mask selects none of the events.",
              Edit("way_out", "74 >leave", "90 90", Ways))
    yield bug("event-test-of-the-last-domain", "Xen tests the events of the domain that ran before.",
              Edit("show", "ram[_SHARED_INFO] = ", "ram[_SHARED_INFO] = ram[_SHARED_INFO] or ", GuestRun))

    # --- which handler is entered
    yield bug("int-dpl-unchecked", "INT n calls every handler from every ring.",
              Edit("software", "handler.flags & 3 < self.ram[CS] & 3", "False", Delivery))
    yield bug("int-not-skipped", "The frame of INT n leads back to it.", Edit("software", "+ INT_SIZE", "", Delivery))
    yield bug("int-of-an-exception", "INT 6 comes to Xen's own entry and is taken for an undefined instruction.",
              Edit("dpl", ".get(vector, 0)", ".get(vector, 3 * (vector == 6))", Ways))
    yield bug("breakpoint-kept-from-applications", "INT3 of an application is a protection fault.",
              Edit("dpl", "3: 3", "3: 1", Ways))
    yield bug("handler-masks-nothing", "A handler that wants events masked is entered with the mask as it was.",
              Edit("enter", "handler.flags & Xen2003.EVENTS_MASKED", "False", Delivery))
    yield bug("ldt-fault-bounced", "A page of the LDT that an instruction needs is not mapped: the guest has the fault.",
              Edit("page_fault", "if 0 <= ", "if 0 > ", Delivery))
    yield bug("ldt-fault-by-the-guests-address", "A fault in the LDT is reported at the guest's own address, as in 1.0 (W-41).",
              Edit("page_fault", "else:\n", "else:\n        if 0 <= offset < at.WINDOW_PAGES * PAGE_SIZE:\n"
                   "            self.ram[ADDRESS] = self.kernel().ldt_base + offset\n", Delivery))
    yield bug("single-step-masks-events", "The handler of a single step masks events.",
              Edit("single_step", "._replace(flags=0)", "", Delivery))
    yield bug("single-step-untold", "The guest's debug register 6 says nothing of a single step.",
              Edit("single_step", "self.kernel().debug[6] = self.ram[DEBUG]", "pass", Delivery))
    yield bug("fpu-trap-again", "The mark of fpu_taskswitch is not taken away by its trap.",
              Edit("fpu", "kernel.wants_fpu_trap = False", "pass", Delivery))
    yield bug("fpu-trap-lost", "A kernel that asked for it does not hear of floating point.",
              Edit("fpu", "if kernel.wants_fpu_trap:", "if False:", Delivery))
    yield bug("privileged-instruction-skipped", "Xen lets a guest go on behind HLT, CLI and STI, as if they were done.",
              Edit("trap", "elif vector == PF:", """elif vector == GP and error == 0 and self.hypervisor.walk(ram[EIP]) >= 0 and (
            self.hypervisor.bytes[4 * self.hypervisor.walk(ram[EIP]) + (ram[EIP] & 3)] in b"\\xf4\\xfa\\xfb"):
        ram[EIP], ram[WORDS] = ram[EIP] + 1, NO_FRAME
    elif vector == PF:""", Delivery))

    # --- what the processor goes by
    yield bug("fast-trap-of-the-last-domain", "The fast trap's gate is not exchanged when another domain runs.",
              Edit("show", "self.fast_trap(kernel)", "pass", Present))
    yield bug("fast-trap-for-all", "The fast trap's gate lets every ring in, whatever its handler's DPL.",
              Edit("gate", "(handler.flags & 3) << 13", "3 << 13", Present))
    yield bug("fast-trap-masks-interrupts", "The fast trap's gate is an interrupt gate: IF is clear in the handler.",
              Edit("gate", "_TRAP_GATE", "0x8E00", Present))
    yield bug("kernel-stack-of-the-last-domain", "The stack of ring 1 is not exchanged when another domain runs.",
              Edit("show", "self.stack(*kernel.stack)", "pass", Present))


PLANTS: dict[str, Plant] = {plant.name: plant for plant in _plants()}
