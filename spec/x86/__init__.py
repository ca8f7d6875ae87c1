"""The processor's half: address translation and the TLB."""
