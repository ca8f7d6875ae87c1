"""Output files appear whole or not at all."""
import os
import tempfile
from pathlib import Path
from typing import Any

Buffer = Any                                # bytes, or what has the buffer protocol


def write_whole(path: str | Path, text: str) -> None:
    """Write `text` to `path` under a temporary name, then rename it; OSError, naming `path`, if that can't be done.

    What is no regular file (/dev/stdout, a named pipe) is written directly, since a rename would replace it.  '-' is standard
    output.
    """
    if str(path) == "-":
        print(text, end="")
        return
    write_whole_bytes(Path(path), text.encode("utf-8"))


def write_whole_bytes(path: Path, contents: Buffer) -> None:
    """The same for bytes, or what has the buffer protocol."""
    if path.exists() and not path.is_file():
        path.write_bytes(contents)
        return
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(path)) from None
    try:
        with open(handle, "wb") as f:
            f.write(contents)
        os.chmod(name, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def check_writable(path: str | Path) -> None:
    """OSError, naming `path`, if a file can't be written there: known before an hour of fuzzing, not after."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(21, "Is a directory", str(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(2, "No such directory", str(path.parent))
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(13, "Permission denied", str(path))
    if not path.exists() or path.is_file():
        try:                                # rights are not all: a full disk, a name too long, /proc
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        except OSError as e:
            raise OSError(e.errno, e.strerror, str(path)) from None
        os.close(handle)
        Path(name).unlink()


def check_folder(folder: Path) -> None:
    """OSError, naming it, if the folder can't be made, or nothing written in it; it is not made."""
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    if not there.is_dir():
        raise NotADirectoryError(20, "Not a directory", str(there))
    try:
        os.rmdir(tempfile.mkdtemp(dir=there))
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(folder)) from None


def _umask() -> int:
    """The process's file mode mask; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
