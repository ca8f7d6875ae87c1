"""Targets that run real machine code: our own hypervisor on the Bochs processor."""
