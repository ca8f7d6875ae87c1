"""What must hold: rules, invariants and theorems of x86 and of Xen's paravirtual interface.  Imports nothing else."""
