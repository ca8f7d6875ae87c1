"""What the real Xen needs: QEMU, Xen and the executor, found, fetched as Debian packages, checked and built.

`python -m emulator.xen.fetch` (or `make real-xen`) gets what is missing and says what there is.  As root it installs QEMU;
otherwise packages are downloaded and unpacked under the project's cache.  Xen is never installed, only unpacked.
"""
import argparse
import gzip
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

CACHE: Final = Path(os.environ.get("XENSPEC_CACHE") or Path(__file__).resolve().parents[2] / ".cache") / "real-xen"
SOURCES: Final = Path(__file__).resolve().parent / "executor"
COULD_NOT: Final = 2                        # the status of a command that cannot run
HINT: Final = "run `make real-xen`"
KNOWN: Final = "4.17"                       # of which Xen we know the interface and the records
XEN_PACKAGE: Final = f"xen-hypervisor-{KNOWN}-amd64"
QEMU_PACKAGE: Final = "qemu-system-x86"
QEMU: Final = "qemu-system-x86_64"
CFLAGS: Final = ("-O2", "-ffreestanding", "-fno-stack-protector", "-fno-pic", "-no-pie", "-mno-red-zone", "-mgeneral-regs-only",
                 "-fcf-protection=none", "-fno-asynchronous-unwind-tables", "-nostdlib", "-static", "-Wall", "-Wextra", "-Werror",
                 "-Wl,-z,noexecstack,--build-id=none,-z,max-page-size=4096")


@dataclass(frozen=True)
class Tools:
    """All that a machine needs: the command that starts QEMU and its environment, Xen's ELF, the executor's."""
    qemu: tuple[str, ...]
    qemu_version: str
    xen: Path
    executor: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        xen, executor = self.xen.stat().st_size, self.executor.stat().st_size
        version = written_version(self.xen.read_bytes()) or "version unknown"
        return (f"QEMU:     {' '.join(self.qemu)} ({self.qemu_version})\n"
                f"Xen:      {self.xen} ({version}, {xen:,} bytes)\n"
                f"executor: {self.executor} ({executor:,} bytes)")


@dataclass(frozen=True)
class Missing:
    """What is not there, in one line."""
    what: str

    def __str__(self) -> str:
        return f"the real Xen cannot run: {self.what}"


class FetchError(Exception):
    """It could not be had: what, in one line."""


# --- what is there -----------------------------------------------------------------------------------------------------------

def found(xen: Path | None = None) -> Tools | Missing:
    """The tools that are there; `xen`, or XENSPEC_XEN in the environment, is another Xen than the fetched one."""
    try:
        command, environment, version = qemu()
        return Tools(command, version, xen_elf(xen), built_executor(), environment)
    except FetchError as error:
        return Missing(str(error))


def qemu() -> tuple[tuple[str, ...], dict[str, str], str]:
    """The command of an installed QEMU, else of the unpacked one; its environment, and its version."""
    if path := shutil.which(QEMU):
        return (path,), {}, qemu_version((path,), {})
    root = CACHE / "qemu"
    path = str(root / "usr/bin" / QEMU)
    if not os.access(path, os.X_OK):
        raise FetchError(f"there is no {QEMU}: {HINT}")
    libraries = [str(each) for part in ("usr/lib", "lib") for each in sorted((root / part).glob("*-linux-gnu*"))]
    environment = {"LD_LIBRARY_PATH": ":".join(libraries)}
    firmware = [word for part in ("qemu", "seabios") for word in ("-L", str(root / "usr/share" / part))]
    return (path, *firmware), environment, qemu_version((path,), environment)


def qemu_version(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """What QEMU says of itself."""
    ran = subprocess.run([*command, "--version"], capture_output=True, text=True, env={**os.environ, **environment})
    if ran.returncode:
        raise FetchError(f"{command[0]} does not run: {last_line(ran.stderr)}")
    return ran.stdout.splitlines()[0].removeprefix("QEMU emulator ")


def asked_for(xen: Path | None) -> Path | None:
    """The Xen that somebody names, if any."""
    return xen or (Path(os.environ["XENSPEC_XEN"]) if os.environ.get("XENSPEC_XEN") else None)


def xen_elf(xen: Path | None) -> Path:
    """Xen's image: the one asked for, else the fetched one."""
    asked = asked_for(xen)
    if asked is not None:
        check_elf(asked)
        return asked
    images = sorted((CACHE / "xen").glob("xen-*.elf"))
    if not images:
        raise FetchError(f"there is no Xen: {HINT}, or name its ELF by XENSPEC_XEN")
    check_elf(images[-1])
    return images[-1]


def check_elf(image: Path) -> None:
    """That it is an ELF with a multiboot header, as QEMU boots it."""
    try:
        with open(image, "rb") as file:
            head = file.read(8192)
    except OSError as error:
        raise FetchError(f"{image}: {error.strerror}") from error
    if head[:2] == b"\x1f\x8b":
        raise FetchError(f"{image} is compressed: gunzip it first")
    if head[:4] != b"\x7fELF" or b"\x02\xb0\xad\x1b" not in head:
        raise FetchError(f"{image} is no multiboot ELF")
    contents = image.read_bytes()
    version = written_version(contents)
    if b"Xen version" not in contents:
        raise FetchError(f"{image} is no Xen")
    if version and not version.startswith(f"{KNOWN}."):
        raise FetchError(f"{image} is Xen {version}: only that of {KNOWN} is known here, its interface and its records")


def written_version(contents: bytes) -> str:
    """The version that is written in an image; not in all: one that runs is asked."""
    there = re.search(rb"Xen version (\d+\.\d+[^ \0]*)|\0(\d\.\d+\.\d+[^ \0]*)\0", contents)
    return (there[1] or there[2]).decode() if there else ""


# --- the executor ------------------------------------------------------------------------------------------------------------

def built_executor() -> Path:
    """The executor, built if it is not there or older than its sources."""
    image = CACHE / "executor.elf"
    sources = sorted(SOURCES.iterdir())
    if image.exists() and image.stat().st_mtime > max(each.stat().st_mtime for each in sources):
        return image
    compiler = shutil.which("gcc")
    if compiler is None:
        raise FetchError("there is no gcc to build the executor with: install gcc")
    CACHE.mkdir(parents=True, exist_ok=True)
    fresh = CACHE / f"executor.{os.getpid()}"
    code = [str(each) for each in sources if each.suffix in {".S", ".c"}]
    ran = subprocess.run([compiler, *CFLAGS, "-T", str(SOURCES / "link.lds"), "-o", str(fresh), *reversed(code)],
                         capture_output=True, text=True)
    if ran.returncode:
        raise FetchError(f"gcc cannot build the executor: {last_line(ran.stderr)}")
    fresh.replace(image)
    return image


# --- fetching ----------------------------------------------------------------------------------------------------------------

def fetch(xen: Path | None = None) -> None:
    """Get QEMU and, if no other Xen is named, Xen, as far as they are missing."""
    try:
        qemu()
    except FetchError:
        get_qemu()
    if asked_for(xen) is None and not any((CACHE / "xen").glob("xen-*.elf")):
        get_xen()


def get_qemu() -> None:
    """Install QEMU as root; otherwise unpack it, with those packages below it that are not installed."""
    if os.geteuid() == 0:
        with_lists("install", "--yes", "--no-install-recommends", QEMU_PACKAGE)
        return
    plan = with_lists("install", "--simulate", "--no-install-recommends", QEMU_PACKAGE)
    unpack([line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")], CACHE / "qemu")


def get_xen() -> None:
    """Unpack Xen's package and uncompress its image."""
    root = CACHE / "xen" / "root"
    unpack([XEN_PACKAGE], root)
    images = [each for each in sorted((root / "boot").glob("xen-*.gz")) if not each.is_symlink()]
    if not images:
        raise FetchError(f"package {XEN_PACKAGE} holds no /boot/xen-*.gz")
    for image in images:
        elf = CACHE / "xen" / image.with_suffix(".elf").name
        elf.write_bytes(gzip.decompress(image.read_bytes()))
        check_elf(elf)
    shutil.rmtree(root)


def unpack(packages: Sequence[str], root: Path) -> None:
    """Download packages and unpack them below a directory."""
    downloads = CACHE / "packages"
    downloads.mkdir(parents=True, exist_ok=True)
    with_lists("download", *packages, cwd=downloads)
    root.mkdir(parents=True, exist_ok=True)
    for package in packages:
        for file in downloads.glob(f"{package}_*.deb"):
            command(["dpkg", "-x", str(file), str(root)])
    shutil.rmtree(downloads)


def with_lists(*words: str, cwd: Path | None = None) -> str:
    """A command of apt-get; if it fails, once more after the lists of packages were fetched (without root, into the cache)."""
    try:
        return command(["apt-get", *own_lists(), *words], cwd)
    except FetchError:
        private = () if os.geteuid() == 0 else tuple(make_lists())
        command(["apt-get", *private, "update"])
        return command(["apt-get", *private, *words], cwd)


def own_lists() -> tuple[str, ...]:
    """Options for lists in the cache, if they are there."""
    return tuple(list_options()) if os.geteuid() and (CACHE / "apt").is_dir() else ()


def make_lists() -> Iterator[str]:
    """Room for lists in the cache, and the options that name it."""
    for part in ("lists/partial", "archives/partial"):
        (CACHE / "apt" / part).mkdir(parents=True, exist_ok=True)
    return list_options()


def list_options() -> Iterator[str]:
    """The options of apt-get for lists in the cache."""
    for key, value in (("Dir::State::lists", "lists"), ("Dir::Cache", "."), ("Dir::Cache::archives", "archives")):
        yield from ("-o", f"{key}={CACHE / 'apt' / value}")


def command(words: Sequence[str], cwd: Path | None = None) -> str:
    """The output of a command.  Raises `FetchError` with the last line of its complaints."""
    if shutil.which(words[0]) is None:
        raise FetchError(f"there is no {words[0]} here: install {QEMU} and gunzip a Xen by hand, and name it by XENSPEC_XEN")
    ran = subprocess.run(words, cwd=cwd, capture_output=True, text=True, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
    if ran.returncode:
        raise FetchError(f"`{' '.join(words)}` failed: {last_line(ran.stderr or ran.stdout)}")
    return ran.stdout


def last_line(text: str) -> str:
    """The last line that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no reason given")


def main() -> int:
    """Fetch, check, and say what there is."""
    parser = argparse.ArgumentParser(prog="python -m emulator.xen.fetch", description=__doc__)
    parser.add_argument("--xen", type=Path, metavar="ELF", help="another Xen than Debian's: its multiboot ELF")
    parser.add_argument("--check", action="store_true", help="fetch nothing")
    given = parser.parse_args()
    try:
        if not given.check:
            fetch(given.xen)
    except FetchError as error:
        print(f"real-xen: {error}", file=sys.stderr)
        return COULD_NOT
    there = found(given.xen)
    print(there, file=sys.stdout if isinstance(there, Tools) else sys.stderr)
    return COULD_NOT if isinstance(there, Missing) else 0


if __name__ == "__main__":
    raise SystemExit(main())
