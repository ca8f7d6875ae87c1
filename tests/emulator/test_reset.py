"""A reset is a fresh boot: after any program, all of RAM and every frame's word are as they were."""
import random

import numpy as np
import pytest

from emulator.audit import recount
from emulator.boot import boot
from emulator.errors import HarnessError
from emulator.layout import IDT_FRAME, LDT_MAPPED_OFFSET, RECORD_FRAME, RECORD_FRAMES, SCRATCH_FRAME
from emulator.target import EmulatorTarget
from spec.abi import DOMID_XEN, L1, L2, NONE, PAGE_SIZE, WRITABLE, Xen2003
from spec.vocabulary import FREE_FRAME, DomainSetup, Setup, unpack_frame
from tests.emulator.guest import PTE, Guest, frame_words, segment, setup_of, value, visible

MAP = Xen2003.UPDATE_VA_MAPPING


def random_program(setup, seed, length):
    """Actions with a fair chance to do something: entries for frames nearby, tables in the making, lists."""
    r = random.Random(seed)
    guests = [Guest(setup, d.domid) for d in setup.domains]

    def frame():
        g = r.choice(guests)
        return r.choice((g.l1, g.l2, g.frame(20 + r.randrange(6)), g.frame(r.randrange(64)), g.shared_info, r.randrange(1200)))

    def entry():
        return frame() << 12 | r.choice((0, 1, 1, 3, 3, PTE, 7, 0x81, 0x101))

    def place(g):
        slot = r.choice((0, 1, 768, 769, 1007, 1008, 1020))
        return r.choice((g.l1e(r.randrange(20, 80)), g.l1e(20 + r.randrange(6)), g.l2e(slot),
                         g.va(20 + r.randrange(6)) + 4 * r.randrange(8), r.getrandbits(32)))

    def requests(g):
        for _ in range(r.choice((1, 1, 1, 2, 4))):
            command = r.choice((0, 0, 1, 4, 4, 5, 6, 7))
            yield r.choice(((place(g) & ~3, entry()), (place(g) & ~3, entry()), (frame() << 12 | 3, command),
                            (place(g) & ~3 | r.randrange(3), entry()), (frame() << 12 | 2, r.getrandbits(8))))

    def action(g):
        va = r.choice((g.va(r.randrange(66)), g.va(20 + r.randrange(6)), r.randrange(8) << 12, place(g), r.getrandbits(32)))
        return r.choice((
            lambda: g.load(va, r.random() < .2), lambda: g.store(va, r.choice((entry(), r.getrandbits(32))), r.random() < .2),
            lambda: g.execute(g.va(1) + r.randrange(4096)), lambda: g.update(*requests(g)), lambda: g.update(*requests(g)),
            lambda: g.map(r.randrange(20, 80), entry(), r.randrange(4)), lambda: g.unmap(20 + r.randrange(6), r.randrange(4)),
            lambda: g.decrease(*(frame() for _ in range(r.randrange(1, 3)))), lambda: g.increase(r.randrange(3)),
            lambda: g.multicall((MAP, 0xC0000 + r.randrange(20, 80), entry(), r.randrange(4)), (MAP, 0xC0014, entry(), 3))))()

    def descriptors(g):
        page, other = 20 + r.randrange(6), 20 + r.randrange(6)
        selector = r.choice((0, 1, 256, 259, 300, 515)) << 3 | r.randrange(8)
        return r.choice((
            lambda: g.read_only(page)[0], lambda: g.read_only(page)[0],
            lambda: g.set_gdt(*map(g.frame, r.choice(((page,), (page, other))))), lambda: g.set_ldt(page, r.choice((0, 8, 600))),
            lambda: g.set_descriptor(frame(), r.choice((0, 1, 256, 300)), segment(r.choice((0x13, 0x12)), r.randrange(4))),
            lambda: g.load_segment(r.choice(("ds", "es", "fs", "gs", "ss")), selector, r.random() < .3),
            lambda: g.set_traps((r.choice((0x20, 0x80, 5)), r.randrange(8), r.choice((0x819, 0x809)), 5)),
            lambda: g.call(Xen2003.SET_FAST_TRAP, r.choice((0, 0x20, 0x80))),
            lambda: g.call(Xen2003.STACK_SWITCH, r.getrandbits(16), r.getrandbits(32))))()
    return [(descriptors if r.random() < .25 else action)(r.choice(guests)) for _ in range(length)]


def whole_machine(target):
    """All of RAM but the harness's scratch page and records, all frames' words, and what the hypervisor knows besides."""
    hypervisor = target.hypervisor
    ram = np.frombuffer(hypervisor.bytes, np.uint8).copy()
    ram[SCRATCH_FRAME * PAGE_SIZE:(RECORD_FRAME + RECORD_FRAMES) * PAGE_SIZE] = 0
    ram[3 * PAGE_SIZE:4 * PAGE_SIZE] = 0        # the ring-0 stack
    ram[IDT_FRAME * PAGE_SIZE + LDT_MAPPED_OFFSET] = 0      # an answer that nobody waits for
    return (ram.tobytes(), hypervisor.npg.tobytes(), hypervisor.base.copy(), hypervisor.pages.copy(),
            dict(hypervisor.descriptors.kernels),
            hypervisor.extent, hypervisor.pool.free, hypervisor.current, hypervisor.flush_due)


@pytest.mark.parametrize("seed", range(60))
def test_reset_is_exact(only_target, seed):
    """And until then every count is what the tables say."""
    setup = setup_of(3)
    only_target.reset(setup)
    program = random_program(setup, seed, 200)
    fresh = whole_machine(only_target)
    first = only_target.run(program)
    assert recount(only_target.hypervisor) == []
    seen = visible(only_target)
    only_target.reset(setup)
    assert whole_machine(only_target) == fresh
    assert only_target.run(program) == first
    assert visible(only_target) == seen


def test_the_random_programs_do_something(only_target):
    setup = setup_of(3)
    counts: dict[tuple[type, bool], int] = {}
    for seed in range(20):
        only_target.reset(setup)
        program = random_program(setup, seed, 200)
        for action, outcome in zip(program, only_target.run(program), strict=True):
            key = type(action), outcome.vector < 0 <= outcome.value
            counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 10


def test_another_setup_in_the_same_process(only_target):
    """Smaller, larger, and back: each is a fresh machine."""
    small, large = setup_of(1, 16, 700), setup_of(5, 100, 3000)
    for setup in (small, large, setup_of(3), small):
        only_target.reset(setup)
        assert visible(only_target)[1] == boot(setup).words[:only_target.observe().extent].tobytes()
        for domain in setup.domains:
            g = Guest(setup, domain.domid)
            assert only_target.run([g.load(g.va(1)), g.load(g.l1e(0)), g.load(g.va(5))]) == [
                value(0xCBCBCBCB), value(domain.first << 12 | PTE), value(0)]


def test_the_target_that_was_reset_last_has_the_processor(only_target):
    only_target.reset(setup_of(1))
    other = EmulatorTarget()
    other.reset(setup_of(1))
    with pytest.raises(HarnessError, match="reset first"):
        only_target.run([])
    only_target.reset(setup_of(1))
    with pytest.raises(HarnessError, match="reset first"):
        other.observe()
    other.close()


def test_what_an_observation_shows_at_boot(only_target):
    setup = setup_of(2)
    guest = Guest(setup, 1)
    only_target.reset(setup)
    seen = only_target.observe()
    words = frame_words(seen)
    assert seen.extent == guest.shared_info + 1 == len(words)
    assert seen.base == {0: Guest(setup, 0).l2, 1: guest.l2}
    assert [unpack_frame(words[f]) for f in (0, guest.frame(0), guest.l1, guest.l2, guest.shared_info)] == [
        (DOMID_XEN, NONE, 0, 0, False), (1, WRITABLE, 1, 1, False), (1, L1, 1, 2, False), (1, L2, 2, 3, True),
        (1, WRITABLE, 2, 2, False)]
    memory, m2p = memoryview(seen.memory).cast("I"), memoryview(seen.m2p).cast("I")
    assert len(memory) == (seen.extent - setup.xen_frames) * 1024
    assert [m2p[f] for f in (0, guest.frame(0), guest.frame(63), guest.shared_info)] == [0xFFFFFFFF, 0, 63, 64]
    assert memory[(guest.l2 - setup.xen_frames) * 1024 + 1020] == guest.l2 << 12 | 0x63


def test_a_domain_with_several_l1_tables(only_target):
    setup = setup_of(1, 3000, 6000)
    guest = Guest(setup, 0)
    only_target.reset(setup)
    assert recount(only_target.hypervisor) == []
    tables = [guest.frame(2999 - 3 + k) for k in range(3)]
    assert only_target.run([guest.load(guest.l2e(768 + k)) for k in range(4)]) == [
        *(value(f << 12 | 0x67) for f in tables), value(0)]
    assert only_target.run([guest.load(guest.va(2996) + 4 * 5), guest.load(guest.va(3000))]) == [
        value(guest.frame(5) << 12 | PTE), value(0)]
    assert frame_words(only_target.observe())[tables[2]] == frame_words(only_target.observe())[tables[0]]


@pytest.mark.parametrize("change", [
    {"profile": "xen-4.17"}, {"xen_frames": 100}, {"frames": 200}, {"frames": 1 << 21}, {"xen_slots": (0,) * 16}, {"domains": ()},
    {"domains": (DomainSetup(1, 300, 64), DomainSetup(1, 400, 64))}, {"domains": (DomainSetup(1, 1190, 64),)},
    {"domains": (DomainSetup(1, 300, 64), DomainSetup(2, 350, 64))}, {"domains": (DomainSetup(1, 10, 64),)},
    {"domains": (DomainSetup(1, 300, 3),)}, {"domains": (DomainSetup(0x7FF4, 300, 64),)}])
def test_setups_that_cannot_be(only_target, change):
    good = setup_of(1)
    fields = {name: getattr(good, name) for name in ("profile", "frames", "xen_frames", "domains", "xen_slots")}
    with pytest.raises(HarnessError, match="not a machine"):
        only_target.reset(Setup(**(fields | change)))


def test_free_frames_between_domains_are_handed_out_first(only_target):
    xen_frames, xen_slots = EmulatorTarget.needs(1200)
    domains = (DomainSetup(1, xen_frames + 2, 64), DomainSetup(2, xen_frames + 70, 64))
    setup = Setup("xen-2003", 1200, xen_frames, domains, xen_slots)
    guest = Guest(setup, 1)
    only_target.reset(setup)
    assert frame_words(only_target.observe())[xen_frames] == FREE_FRAME
    pages = range(20, 26)
    unmap = [guest.unmap(page) for page in pages]
    given = only_target.run([*unmap, guest.decrease(*map(guest.frame, pages)), guest.increase(6)])[-1]
    assert given.chose == (xen_frames, xen_frames + 1, *(guest.frame(page) for page in range(20, 24)))
    assert only_target.observe().extent == xen_frames + 70 + 65
