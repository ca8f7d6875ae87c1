"""The word of a frame and the bits of a table's entry, as the hypervisor handles them."""
from typing import Final

from spec import abi
from spec.abi import Xen2003

# --- a frame's word
TYPED: Final = 0x3FFFFF                 # typed references
TYPED_REF: Final = 1
GENERAL_REF: Final = 1 << 22
BOTH: Final = GENERAL_REF | TYPED_REF
REFS: Final = TYPED << 22
TYPE: Final = 7 << 44
L1: Final = abi.L1 << 44
L2: Final = abi.L2 << 44
GDT: Final = abi.SEG_DESC << 44
LDT: Final = abi.LDT_DESC << 44
WRITABLE: Final = abi.WRITABLE << 44
PINNED: Final = 1 << 47
OWNER: Final = 0xFFFF << 48
NO_DOMAIN: Final = abi.DOMID_SELF << 48 # words from here on belong to no domain

# --- a table's entry
FRAME: Final = 0xFFFFF000
L1_ILLEGAL: Final = abi.G | abi.PAT
L2_ILLEGAL: Final = abi.G | abi.PSE
XEN_SLOT: Final = Xen2003.XEN_SLOT
