"""Proofs about the specification; so far the stand-in that runs every rule on terms."""
