"""What shows a divergence again: the program as JSON lines, and as a short Python program that runs it."""
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Final

from oracle.campaign import CampaignResult
from oracle.files import write_whole
from oracle.judge import Verdict, describe, harness_verdict, show
from oracle.program import Program, dump
from oracle.report import printable, sentence_of
from oracle.runner import CampaignSpec, Divergence, HarnessFailure
from spec.vocabulary import Action, Context, Setup, Transfer

TEMPLATE: Final = '''"""{about}

Runs the program on the model and on a target (the first argument; {target!r} if there is none); ends with 1 while they disagree.
"""
import sys

from oracle.replay import reproduce
from spec.vocabulary import {kinds}

SETUP = {setup}
ACTIONS = [
{actions}
]
{expected}
if __name__ == "__main__":
    sys.exit(reproduce(SETUP, ACTIONS, target=sys.argv[1] if len(sys.argv) > 1 else {target!r}{plant}))
'''


def write_reproducers(result: CampaignResult, folder: Path) -> dict[int, list[Path]]:
    """For each divergence and harness failure a program in JSON lines and a runnable one in Python, by program.

    The folder is made only if there is something to put in it.  OSError if they can't be written.
    """
    found: list[tuple[str, Divergence | HarnessFailure, Verdict]] = []
    found += [("divergence", d, d.verdict) for d in result.divergences]
    found += [("harness", f, harness_verdict(0, f.what)) for f in result.harness_failures if f.actions]
    if found:
        folder.mkdir(parents=True, exist_ok=True)
    return {each.index: write_one(result.spec, folder / f"{kind}-{result.seed}-{each.index}", each, verdict)
            for kind, each, verdict in found}


def write_one(spec: CampaignSpec, stem: Path, found: Divergence | HarnessFailure, verdict: Verdict) -> list[Path]:
    """Both forms of one program."""
    note = f"{verdict.direction}: {verdict.summary} (seed {spec.seed}, program {found.index})"
    program = Program(found.setup, list(found.actions), note=note)
    paths = [Path(f"{stem}.jsonl"), Path(f"{stem}.py")]
    dump(program, paths[0])
    write_whole(paths[1], python_program(program, verdict, spec))
    return paths


def python_program(program: Program, verdict: Verdict, spec: CampaignSpec) -> str:
    """A short Python program that runs `program` on the model and the target and says how they differ."""
    kinds = sorted({"Setup", "DomainSetup", *(type(a).__name__ for a in program.actions),
                    *("Context" for a in program.actions if isinstance(a, Transfer))})
    rule = f"\n\n{verdict.rule}: {sentence_of(verdict.rule)}" if verdict.rule else ""
    actions = [f"    {python_action(a)},   # {n}: {describe(a)}" for n, a in enumerate(program.actions)]
    plant = f", plant={spec.plant!r}" if spec.plant else ""
    return TEMPLATE.format(
        about=docstring(program.note + rule), target=spec.target, kinds=", ".join(kinds), setup=python_setup(program.setup),
        actions="\n".join(actions), expected=expectation(program.actions, verdict), plant=plant)


def docstring(text: str) -> str:
    """Text that can stand in a docstring."""
    return printable(text).replace("\\", "\\\\").replace('"""', "'''")


def expectation(actions: Sequence[Action], verdict: Verdict) -> str:
    """What the model gave and the target did at the deviating action, as a comment."""
    if verdict.model is None or verdict.target is None or verdict.at >= len(actions):
        return ""
    action = actions[verdict.at]
    model, target = show(action, verdict.model), show(action, verdict.target)
    return f"# Action {verdict.at}: the model gives {model}, the target gave {target}.\n"


def python_action(action: Action) -> str:
    """An action as Python; addresses and words in hexadecimal."""
    return _python_record(action)


def _python_record(record: Action | Context) -> str:
    """A record, by the names of its fields."""
    values = [(f, getattr(record, f.name)) for f in fields(record)]
    given = [f"{f.name}={_python(value)}" for f, value in values if f.default is MISSING or value != f.default]
    return f"{type(record).__name__}({', '.join(given)})"


def python_setup(setup: Setup) -> str:
    """A setup as Python."""
    domains = ", ".join(f"DomainSetup({d.domid}, {d.first}, {d.pages})" for d in setup.domains)
    slots = _python(setup.xen_slots)
    machine = f", machine={setup.machine!r}" if setup.machine else ""
    own = f", xen_descriptors={_python(setup.xen_descriptors)}" if setup.xen_descriptors else ""
    return f"Setup({setup.profile!r}, {setup.frames}, {setup.xen_frames}, ({domains},),\n              {slots}{machine}{own})"


def _python(value: Any) -> str:
    """A literal: tuples of tuples of numbers, small ones decimal; a name; registers."""
    if isinstance(value, Context):
        return _python_record(value)
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(_python, value))}{',' * (len(value) == 1)})"
    return str(value) if isinstance(value, bool) or value < 1024 else hex(value)
