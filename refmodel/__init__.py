"""The reference model: a machine composed of the specification's transitions; obviously right, not fast."""
from refmodel.audit import Violation, audit
from refmodel.boot import SetupError, boot
from refmodel.choices import Choices
from refmodel.dump import StateError, dump_state, load_state
from refmodel.guest import ModelError
from refmodel.imported import Imported, audited, imported, imported_machine
from refmodel.machine import Machine, Mark
from refmodel.observation import Difference

__all__ = ["Choices", "Difference", "Imported", "Machine", "Mark", "ModelError", "SetupError", "StateError", "Violation", "audit",
           "audited", "boot", "dump_state", "imported", "imported_machine", "load_state"]
