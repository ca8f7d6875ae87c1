"""The target that the oracle drives: our own hypervisor on an emulated x86-32 processor, profile xen-2003."""
import struct
from collections.abc import Sequence

import numpy as np

from emulator import layout
from emulator.boot import boot
from emulator.errors import HarnessError
from emulator.hypervisor import Hypervisor
from emulator.machine import CAPACITY, Machine
from emulator.records import Program, outcomes
from emulator.words import TYPE, TYPED
from spec.abi import PAGE_SIZE
from spec.vocabulary import Action, Observation, Outcome, Setup


class EmulatorTarget:
    """One machine at a time; of several targets in a process, the one that was reset last has the processor."""
    name = "emulator"
    profiles = ("xen-2003",)

    def __init__(self) -> None:
        self._setup: Setup | None = None
        self._machine: Machine | None = None
        self._trusted = True                    # no bug is planted

    @staticmethod
    def needs(frames: int) -> tuple[int, tuple[int, ...]]:
        """Xen's frames and the words of its slots in a machine of that size, for its `Setup`."""
        return layout.xen_frames(frames), layout.xen_slots()

    @property
    def machine(self) -> Machine:
        """The machine of the last reset."""
        if self._machine is None or not self._machine.attached:
            raise HarnessError("there is no machine: reset first")
        return self._machine

    @property
    def hypervisor(self) -> Hypervisor:
        """The hypervisor of the last reset."""
        return self.machine.hypervisor

    def reset(self, setup: Setup) -> None:
        """The boot state of a setup; cheap if it is the same as before."""
        machine = self._machine
        if machine is not None and machine.sound and (setup is self._setup or setup == self._setup):
            machine.reset(whole=not self._trusted)
        else:
            self._machine = Machine(boot(setup))
            self._setup = setup

    def run(self, actions: Sequence[Action]) -> list[Outcome]:
        """Run actions from the present state on, in one stretch of guest code unless they overflow the record area."""
        machine = self.machine
        domains = machine.hypervisor.base
        result: list[Outcome] = []
        done = 0
        while done < len(actions):
            program = Program(machine.hypervisor.current, machine.user)
            try:
                done = program.compile(actions, done, CAPACITY, domains)
                machine.load(program)
            except (AttributeError, TypeError, struct.error) as error:
                raise HarnessError(f"not an action, or a number in it is no 32-bit word: {error}") from error
            records = machine.run(program)
            result += outcomes(program, records, machine.chose, machine.ended)
        return result

    def observe(self) -> Observation:
        """The visible state: frames up to the last that was ever in use."""
        hypervisor = self.hypervisor
        end, first = hypervisor.extent, hypervisor.boot.setup.xen_frames
        words = hypervisor.npg[:end]
        shown = np.where(words & np.uint64(TYPED), words, words & np.uint64(~TYPE & 0xFFFFFFFFFFFFFFFF))
        return Observation(end, shown.data.cast("B"), hypervisor.bytes[first * PAGE_SIZE:end * PAGE_SIZE],
                           hypervisor.m2p[:end].cast("B"), dict(hypervisor.base))

    def hypervisor_changed(self, trusted: bool) -> None:
        """Take up methods that were replaced in the hypervisor's class; resets take nothing for unchanged until it is trusted."""
        self._trusted = trusted
        self._setup = None
        if self._machine is not None:
            self._machine.hypervisor.bind_calls()

    def close(self) -> None:
        """Let go of the machine."""
        self._machine = None
        self._setup = None
