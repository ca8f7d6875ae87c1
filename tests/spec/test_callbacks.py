"""What a 64-bit guest says of its handlers, callbacks, kernel stack and breakpoints."""
import pytest

from spec.abi import Xen417
from spec.callbacks import (
    clear_handler,
    is_callback,
    is_guest_debug_64,
    set_callback,
    set_debug_64,
    set_handler,
    switch_kernel_stack,
    switch_task,
)

ME = 1
IP = 0xFFFFFFFF80001000
NOWHERE = 1 << 47                           # not canonical


def flat(w, a):
    """The other profile has no 64-bit guests."""


FLAT = {"FLAT-1.1": flat}
TRIALS = [
    (set_handler, lambda w: {"d": ME, "v": 14, "cs": 0, "ip": IP, "flags": 4}, FLAT | {
        "CALL-10.1": lambda w, a: a.update(v=256),
        "CALL-10.2": lambda w, a: a.update(ip=NOWHERE)}),
    (clear_handler, lambda w: {"d": ME, "v": 14}, FLAT | {"CALL-11.1": lambda w, a: a.update(v=256)}),
    (set_callback, lambda w: {"d": ME, "kind": Xen417.SYSCALL, "ip": IP, "flags": 1}, FLAT | {
        "CALL-12.1": lambda w, a: a.update(kind=6),
        "CALL-12.2": lambda w, a: a.update(ip=NOWHERE)}),
    (switch_kernel_stack, lambda w: {"d": ME, "ss": 0xE028, "sp": IP}, FLAT),
    (switch_task, lambda w: {"d": ME, "on": 1}, FLAT),
    (set_debug_64, lambda w: {"d": ME, "r": 7, "value": 0x10001}, FLAT | {
        "DEBUG-2.1": lambda w, a: a.update(r=4),
        "DEBUG-2.2": lambda w, a: a.update(value=1 << 32),
        "DEBUG-2.3": lambda w, a: a.update(r=0, value=NOWHERE)}),
]
ONLY = {rule[0].__name__: "xen-4.17" for rule in TRIALS} | {"FLAT-1.1": "xen-2003"}
BROKEN = {
    "CALL-20": [("trap_cs", (ME, 3), 0xE030), ("trap_cs", (ME, 257), 0xE031)],
    "CALL-21": [("kernel_ss", ME, 0xE028)],
    "DEBUG-11": [("debug", (ME, 0), NOWHERE), ("debug", (ME, 7), 0x20002)]}


def test_all_conditions_true_and_it_is_done(done):
    assert not done.does().unsound()


def test_one_condition_false_and_it_is_refused(refused):
    refused.refuses()


@pytest.fixture
def w(worlds):
    return worlds("xen-4.17")


def test_privilege_is_taken_and_not_refused(w):
    set_handler(w.s, ME, 3, 0xE030, IP, 0)
    switch_kernel_stack(w.s, ME, 0xE028, IP)
    assert (w.s.trap_cs[ME, 3], w.s.kernel_ss[ME]) == (0xE033, 0xE02B)
    clear_handler(w.s, ME, 3)
    assert (w.s.trap_cs[ME, 3], w.s.trap_ip[ME, 3]) == (0, 0)


@pytest.mark.parametrize(("rule", "where"), [(rule, where) for rule, cases in BROKEN.items() for where in cases])
def test_what_breaks_an_invariant(w, rule, where):
    w.put(*where)
    assert {rule} == {broken for broken, _ in w.unsound()}


def test_a_handler_where_control_cannot_go(w):
    w.put("trap_cs", (ME, 3), Xen417.KERNEL_CS)
    w.put("trap_ip", (ME, 3), NOWHERE)
    assert {"CALL-20"} == {broken for broken, _ in w.unsound()}


@pytest.mark.parametrize(("r", "value", "good"), [
    (0, NOWHERE - 1, True), (3, NOWHERE, False), (3, 0xFFFF800000000000, False), (3, 0xFFFF880000000000, True),
    (6, 0xFFFFFFFF, True), (7, 0x20000, True), (7, 0x20001, False), (7, 0x30001, True), (7, 0x2000, False)])
def test_breakpoints_are_the_guests_own(r, value, good):
    assert bool(is_guest_debug_64(r, value)) == good


def test_callbacks_are_events_failures_and_system_calls():
    assert [kind for kind in range(10) if is_callback(kind)] == [0, 1, 2, 5, 7]
