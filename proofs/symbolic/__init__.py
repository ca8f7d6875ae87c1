"""The engine: it runs the rules of `spec` on terms, with a solver or without one."""
