"""The reference model: a machine composed of the specification's transitions; obviously right, not fast."""
from refmodel.audit import Violation, audit
from refmodel.boot import SetupError, boot
from refmodel.choices import Choices
from refmodel.guest import ModelError
from refmodel.machine import Machine

__all__ = ["Choices", "Machine", "ModelError", "SetupError", "Violation", "audit", "boot"]
