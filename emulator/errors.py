"""The one exception of the package."""


class HarnessError(Exception):
    """The target could not do what it was asked: neither the guest's doing nor the hypervisor's answer."""
