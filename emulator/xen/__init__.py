"""The real Xen under QEMU, with a guest of ours as domain 0, as a target."""
