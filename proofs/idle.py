"""Why no obligation needs some of what the specification says: for each planted bug that breaks nothing, the reason.

An idle bug that is not in this table is a question: is the conjunct needless, or is an obligation missing?
"""
from typing import Final

EXPLAINED: Final = {
    # what another conjunct or an invariant implies
    "drop-PIN-1.2": "PIN-1.3 implies it: only a table is validated (FRAME-1); it is there for the order of Xen's errors",
    "drop-WRITE-1.2": "WRITE-1.3 implies it: only a table is validated (FRAME-1); it is there for the order of Xen's errors",
    "drop-POOL-4.2": "POOL-4.3 implies it: a frame of type none has no typed reference and no checked entry (FRAME-1)",
    "drop-POOL-3.2": "whom a step is for is a domain of the machine, which every proof assumes of it (`kernel.transition`)",
    "drop-LDT-1.1": "whom a step is for is a domain of the machine, which every proof assumes of it (`kernel.transition`)",
    "drop-TLB-2.2": "TLB-3.2 asks it of every step of the walk, and only a step looks at the address",
    "drop-TLB-4.1": "to drop a translation that is not there stores what was there",
    # what keeps to Xen or the processor more closely than isolation needs
    "drop-REF-1.2": "Xen's get_page fails on a frame without references; that one more would delay its release harms nobody",
    "drop-TYPE-1.2": "Xen's get_page fails on a frame without references; that one more would delay its release harms nobody",
    "drop-VALID-1.3": "Xen's get_page fails on a frame without references; that one more would delay its release harms nobody",
    "drop-STORE-1.3": "the processor marks a page dirty before it stores; what may be written is a matter of RW alone (TLB-10)",
    "drop-STORE-1.4": "the processor does not store through what it fetches by; TLB-10 holds of those translations, too",
    "drop-TLB-8.1": "TLB-10 holds of the translations that fetches use, too",
    "drop-LEND-1.2": "a loan of a free frame ends as it is handed out (its term grows), and Xen's frames are not for use by loan",
}
