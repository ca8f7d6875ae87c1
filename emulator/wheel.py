"""Imports the Bochs binding, also where its wheel's extension is named for another Python.

bochscpu-python 0.3.1 for CPython 3.12 and later keeps to the stable ABI, but its extension is named for 3.12 alone, so 3.13 and
later do not find it.  It is loaded here under its module's name; `import bochscpu` then takes it from there.
"""
import importlib.util
import sys
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from typing import Any, Final

_NAME: Final = "bochscpu._bochscpu"


def load_bochs() -> Any:
    """The package `bochscpu`, with its submodules.  Raises ImportError where it is not installed."""
    package = importlib.util.find_spec("bochscpu")
    if sys.version_info >= (3, 13) and _NAME not in sys.modules and package is not None and package.origin is not None:
        _load_extension(Path(package.origin).parent)
    bochs: Any = importlib.import_module("bochscpu")
    bochs._bochscpu = sys.modules[_NAME]    # what an ordinary import of the extension would have set
    for part in ("cpu", "memory"):
        importlib.import_module(f"bochscpu.{part}")
    return bochs


def _load_extension(folder: Path) -> None:
    file = next(folder.glob("_bochscpu*.so"), None)
    if file is None:
        raise ImportError(f"no extension module in {folder.name}")
    found = importlib.util.spec_from_file_location(_NAME, file, loader=ExtensionFileLoader(_NAME, str(file)))
    if found is None or found.loader is None:
        raise ImportError(f"{file.name} cannot be loaded")
    module = importlib.util.module_from_spec(found)
    sys.modules[_NAME] = module
    found.loader.exec_module(module)
