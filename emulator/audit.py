"""Recounts every reference from the tables, entry by entry: what the hypervisor keeps count of must come to the same."""
from emulator import hypervisor as hv
from spec.abi import RW, P


def recount(hypervisor: hv.Hypervisor) -> list[str]:
    """What disagrees, one line a frame; nothing if all is well."""
    words: list[int] = hypervisor.npg[:hypervisor.extent].tolist()
    counts = [0] * len(words)
    serves: list[set[int]] = [set() for _ in words]         # the types that references hold a frame in

    def hold(frame: int, kind: int | None) -> None:
        counts[frame] += hv.GENERAL_REF
        if kind is not None:
            counts[frame] += hv.TYPED_REF
            serves[frame].add(kind)
    for domain in hypervisor.boot.setup.domains:
        hold(domain.first + domain.pages, hv.WRITABLE)         # Xen's own use of shared_info
    for base in hypervisor.base.values():
        hold(base, hv.L2)
    for f, word in enumerate(words):
        if word & hv.PINNED:
            hold(f, word & hv.TYPE)
        if word & hv.TYPED and word & hv.TYPE == hv.L1:
            for entry in hypervisor.ram[f << 10:(f << 10) + 1024]:
                if entry & P:
                    hold(entry >> 12, hv.WRITABLE if entry & RW else None)
        if word & hv.TYPED and word & hv.TYPE == hv.L2:
            for entry in hypervisor.ram[f << 10:(f << 10) + hv.XEN_SLOT]:
                if entry & P and entry >> 12 != f:
                    hold(entry >> 12, hv.L1)
    wrong = [f"frame {f}: {word >> 22 & hv.TYPED}/{word & hv.TYPED} references recorded, {count >> 22}/{count & hv.TYPED} counted"
             for f, (word, count) in enumerate(zip(words, counts, strict=True)) if word & (hv.REFS | hv.TYPED) != count]
    wrong += [f"frame {f} serves as {sorted(kinds)}, recorded is {words[f] & hv.TYPE}"
              for f, kinds in enumerate(serves) if kinds - {words[f] & hv.TYPE}]
    wrong += [f"frame {f} has references but no owner" for f, count in enumerate(counts) if count and words[f] >= hv.NO_DOMAIN]
    return wrong
