"""Recounts every reference from the tables, entry by entry: what the hypervisor keeps count of must come to the same."""
from emulator import words as bits
from emulator.hypervisor import Hypervisor
from spec.abi import RW, P


def recount(hypervisor: Hypervisor) -> list[str]:
    """What disagrees, one line a frame; nothing if all is well."""
    words: list[int] = hypervisor.npg[:hypervisor.extent].tolist()
    counts = [0] * len(words)
    serves: list[set[int]] = [set() for _ in words]         # the types that references hold a frame in

    def hold(frame: int, kind: int | None) -> None:
        counts[frame] += bits.GENERAL_REF
        if kind is not None:
            counts[frame] += bits.TYPED_REF
            serves[frame].add(kind)
    for domain in hypervisor.boot.setup.domains:
        hold(domain.first + domain.pages, bits.WRITABLE)         # Xen's own use of shared_info
    for base in hypervisor.base.values():
        hold(base, bits.L2)
    for kernel in hypervisor.descriptors.kernels.values():
        for f in kernel.gdt:
            hold(f, bits.GDT)
        for f in kernel.ldt.values():
            hold(f, bits.LDT)
    for f, word in enumerate(words):
        if word & bits.PINNED:
            hold(f, word & bits.TYPE)
        if word & bits.TYPED and word & bits.TYPE == bits.L1:
            for entry in hypervisor.ram[f << 10:(f << 10) + 1024]:
                if entry & P:
                    hold(entry >> 12, bits.WRITABLE if entry & RW else None)
        if word & bits.TYPED and word & bits.TYPE == bits.L2:
            for entry in hypervisor.ram[f << 10:(f << 10) + bits.XEN_SLOT]:
                if entry & P and entry >> 12 != f:
                    hold(entry >> 12, bits.L1)
    wrong = [f"frame {f}: {word >> 22 & bits.TYPED}/{word & bits.TYPED} references recorded, "
             f"{count >> 22}/{count & bits.TYPED} counted"
             for f, (word, count) in enumerate(zip(words, counts, strict=True)) if word & (bits.REFS | bits.TYPED) != count]
    wrong += [f"frame {f} serves as {sorted(kinds)}, recorded is {words[f] & bits.TYPE}"
              for f, kinds in enumerate(serves) if kinds - {words[f] & bits.TYPE}]
    wrong += [f"frame {f} has references but no owner" for f, count in enumerate(counts) if count and words[f] >= bits.NO_DOMAIN]
    return wrong
