"""Why no obligation needs some of what the specification says: for each planted bug that breaks nothing, the reason.

An idle bug that is not in this table is a question: is the conjunct needless, or is an obligation missing?
"""
from typing import Final

EXPLAINED: Final = {
    # what another conjunct or an invariant implies
    "drop-POOL-4.2": "POOL-4.3 implies it: a frame of type none has no typed reference and no checked entry (FRAME-1)",
    "drop-POOL-3.2": "whom a step is for is a domain of the machine, which every proof assumes of it (`kernel.transition`)",
    "drop-LDT-1.1": "whom a step is for is a domain of the machine, which every proof assumes of it (`kernel.transition`)",
    "drop-TLB-2.2": "TLB-3.2 asks it of every step of the walk, and only a step looks at the address",
    "drop-TLB-4.1": "to drop a translation that is not there stores what was there",
    "drop-VALID-2.2": "a table without a reference holds what its check takes over, too; VALID-5.2 asks before it is in use",
    "drop-DESC-4.5": "either word of a descriptor leads to it (`descriptor_at`), and the second one is marked",
    "drop-STACK-1.1": "the processor takes no stack for ring 1 but by a selector whose RPL is 1 (`checked_stack`)",
    "drop-SEG-7.1": "the handler of vector 0 is as much the guest's as that of any fast trap (TRAP-10), whose gate it has",
    "drop-DEBUG-2.2": "DEBUG-2.3 is asked of what is stored, and that has 32 bits; more is Xen's EINVAL",
    # what keeps to Xen or the processor more closely than isolation needs
    "drop-REF-1.2": "Xen's get_page fails on a frame without references; that one more would delay its release harms nobody",
    "drop-TYPE-1.2": "Xen's get_page fails on a frame without references; that one more would delay its release harms nobody",
    "drop-VALID-1.3": "Xen's get_page fails on a frame without references; that one more would delay its release harms nobody",
    "drop-STORE-1.3": "the processor marks a page dirty before it stores; what may be written is a matter of RW alone (TLB-10)",
    "drop-STORE-1.4": "the processor does not store through what it fetches by; TLB-10 holds of those translations, too",
    "drop-TLB-8.1": "TLB-10 holds of the translations that fetches use, too",
    "drop-DESC-1.2": "descriptors hold no references: to check more of a table that nobody uses harms nobody; a use begins anew",
    "drop-DESC-5.2": "descriptors hold no references: to check more of a table that nobody uses harms nobody; a use begins anew",
    "drop-DESC-2.3": "a legal descriptor may also stand in a table that is not wholly checked; Xen asks for a typed reference",
    "drop-DESC-4.3": "a mark decides nothing about legality, checked or not; the processor only uses what is in force",
    "drop-DESC-4.6": "what is absent is legal with every bit; the processor looks for presence before it marks",
    "drop-CALL-10.1": "behind the vectors callbacks are kept, of which CALL-20 says the same; Xen's table has 256 entries",
    "drop-CALL-11.1": "behind the vectors callbacks are kept, and without one Xen calls nothing; Xen's table has 256 entries",
    "drop-CALL-12.1": "a callback of another kind would be kept where nobody looks for it (CALL-20 holds there, too)",
    "drop-GDT-4.1": "no selector names a descriptor beyond the first 8,192",
    "drop-TRAP-2.2": "whether the handler runs with events masked is between the guest's kernel and Xen",
    "drop-DEBUG-1.1": "DEBUG-10 holds of registers that there are not, too, since DEBUG-1.2 is asked of all",
    "drop-DEBUG-2.1": "DEBUG-11 holds of registers that there are not, too, since DEBUG-2.3 is asked of all",
    "drop-LEND-1.2": "a loan of a free frame ends as it is handed out (its term grows), and Xen's frames are not for use by loan",
}
