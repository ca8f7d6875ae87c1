"""What people and machines are told: verdict tables, the live display, JSON documents, JUnit.

The documents of a campaign of a given number of actions are the same byte for byte whenever it is repeated, but for
`summary.seconds`; so no clock, no host and no number of workers is in them.
"""
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from xml.etree import ElementTree

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from oracle import coverage
from oracle.campaign import CampaignResult
from oracle.encoding import KINDS, action_to_json, outcome_to_json, setup_to_json
from oracle.files import write_whole
from oracle.ground import DECLARED
from oracle.judge import Direction, Verdict, describe, show
from oracle.replay import Replay, Step
from oracle.runner import CampaignSpec, Divergence, HarnessFailure
from oracle.selftest import PlantResult, SelftestResult
from refmodel import Violation
from spec.kernel import CONJUNCT_RULE, RULES
from spec.vocabulary import Action, Outcome

SPARSELY: Final = 10.0                      # seconds between two lines of progress where there is no terminal
COLOURS: Final = {Direction.AGREES: "green", Direction.TOO_PERMISSIVE: "bold red", Direction.TOO_STRICT: "yellow",
                  Direction.DIFFERENT: "red", Direction.HARNESS: "magenta"}


def emit(document: dict[str, Any], path: str | None) -> None:
    """Write a document to a file, or to standard output ('-').  OSError if it can't be written."""
    if path is None:
        return
    write_whole(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def sentence_of(rule: str) -> str:
    """What a rule, or a conjunct, says."""
    whole = RULES.get(CONJUNCT_RULE.get(rule, rule))
    if whole is None:
        return ""
    return next((c.text for c in whole.conjuncts if c.id == rule), whole.sentence)


def plain(shown: RenderableType) -> str:
    """What is printed, as text without colours."""
    console = Console(file=StringIO(), width=130, color_system=None, highlight=False)
    with console.capture() as captured:
        console.print(shown)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def plain_table(*columns: str, title: str | None = None) -> Table:
    """A table in the house's style: a rule under the head, numbers to be right-justified by the caller."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    return table


# --- campaigns: live ---------------------------------------------------------------------------------------------------------

class Display:
    """How something long goes: on a terminal a bar with its figures, elsewhere a line every few seconds (`is_time_to_say`)."""

    def __init__(self, console: Console, what: str, total: float | None, figures: str) -> None:
        self.console = console
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"), TimeElapsedColumn())
        self.bar = Progress(*columns, console=console)
        self.task = self.bar.add_task(what, total=total, figures=figures)
        self.live = Live(self.bar, console=console, refresh_per_second=8, transient=True) if console.is_terminal else None
        self.said = time.monotonic()

    def __enter__(self) -> Self:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live is not None:
            self.live.stop()

    def is_time_to_say(self) -> bool:
        """There is no terminal, and nothing was said for a while."""
        if self.live is not None or time.monotonic() - self.said < SPARSELY:
            return False
        self.said = time.monotonic()
        return True


class Running(Display):
    """Shows which of a number of things are running, and how many are done."""

    def __init__(self, console: Console, what: str, total: int) -> None:
        super().__init__(console, what, total, f"0 of {total}")
        self.total, self.ended = total, 0
        self.running: list[str] = []

    def start(self, name: str) -> None:
        """Something is running."""
        self.running.append(name)
        self.advance(0)

    def end(self, name: str, more: int, figures: str) -> None:
        """It is done, and with it `more` of the total; `figures` are those of all that is done."""
        self.running.remove(name)
        self.advance(more)
        if self.is_time_to_say():
            self.console.print(f"{figures}; running: {', '.join(self.running)}", highlight=False)

    def advance(self, more: int) -> None:
        """Bring the bar up to date."""
        self.ended += more
        self.bar.update(self.task, advance=more, figures=f"{self.ended} of {self.total}  {', '.join(self.running)}")


class CampaignDisplay(Display):
    """Shows how a campaign goes."""

    def __init__(self, console: Console, spec: CampaignSpec) -> None:
        super().__init__(console, f"{spec.profile} on {spec.target}", spec.actions or spec.seconds, "starting")
        self.spec = spec
        self.last: CampaignResult | None = None

    def __call__(self, result: CampaignResult) -> None:
        """Show the result so far."""
        self.last = result
        if self.live is not None:
            done = result.actions if self.spec.actions else result.seconds
            self.bar.update(self.task, completed=done, figures=figures(result))
        elif self.is_time_to_say():
            self.console.print(f"{result.seconds:5.0f} s  {figures(result)}", highlight=False)


def figures(result: CampaignResult) -> str:
    """A campaign in one line."""
    rate = f" ({(result.actions + result.raw) / result.seconds:,.0f}/s)" if result.seconds else ""
    raw = f" and {result.raw:,} of bursts" if result.raw else ""
    return (f"{result.programs:,} programs, {result.actions:,} actions{raw}{rate}, {len(result.divergences)} divergences, "
            f"{len(result.harness_failures)} harness failures")


# --- campaigns: the verdict --------------------------------------------------------------------------------------------------

def campaign_report(result: CampaignResult, files: dict[int, list[Path]], repeat: str) -> RenderableType:
    """The verdict table of a campaign; `files` are the reproducers by program, `repeat` is the command that repeats it."""
    share = coverage.share(result.coverage, result.spec.profile)
    parts: list[RenderableType] = [
        rules_table(result), "",
        Text(f"rules exercised: {share.rules_decided} of {share.rules}; "
             f"conjuncts decided both ways: {share.both} of {share.conjuncts} (why others can't be: `xenspec cite RULE`)"),
        Text(f"actions and steps: {counted(kinds_of(result)) or 'none'}"),
        Text(f"allowed choices met: {counted(result.looseness) or 'none'}")]
    if result.spec.profile == "xen-4.17":
        parts.append(Text(f"commands never given: {', '.join(coverage.never_given(result.commands)) or 'none'}"))
    parts += [Text(f"declared difference {name}: {n:,} actions left out ({DECLARED[name]})")
              for name, n in sorted(result.declared.items())]
    for divergence in result.divergences:
        parts += ["", divergence_text(divergence, files.get(divergence.index, []))]
    parts += [Text(f"harness failed at program {f.index}: {f.what}{file_list(files.get(f.index, []))}", "magenta")
              for f in result.harness_failures]
    parts += [Text(f"the model is in doubt after program {m.index}: {m.rule} {m.what}", "bold red")
              for m in result.model_findings]
    verdict = Text("nothing found", "bold green") if result.clean else Text("something was found", "bold red")
    said = f": {figures(result)} in {result.seconds:.1f} s, seed {result.seed}"
    return Group(*parts, "", Text.assemble(verdict, said), Text(f"again: {repeat}", "dim", no_wrap=True, overflow="ignore"))


def counted(names: Mapping[str, int]) -> str:
    """What was met, and how often."""
    return ", ".join(f"{name} {n:,}" for name, n in sorted(names.items()))


def kinds_of(result: CampaignResult) -> dict[str, int]:
    """The actions and steps of a campaign, by what they do."""
    return {KINDS[kind]: n for kind, n in result.kinds.items()}


def rules_table(result: CampaignResult) -> Table:
    """A row for each rule of the profile that guards something: how often it decided, what deviates, what it did not decide.

    Conjuncts that no program can decide one way, by the list of `oracle/unreached.json`, are left out of the last columns.
    """
    table = plain_table("rule", ">decisions", ">both ways", "verdict", "never true", "never false", title="Rules")
    excused = {(u.conjunct, u.way) for u in coverage.unreached_list() if u.profile == result.spec.profile}
    found = {CONJUNCT_RULE.get(d.verdict.rule, d.verdict.rule): d.verdict.direction for d in result.divergences}
    for row in coverage.rule_rows(result.coverage, result.spec.profile):
        direction = found.get(row.rule, Direction.AGREES)
        reached = row.decided or row.rule in found
        verdict = Text(direction, COLOURS[direction]) if reached else Text("not reached", "dim")
        table.add_row(row.rule, f"{row.decided:,}", f"{row.both}/{row.conjuncts}", verdict,
                      suffixes(c for c in row.never_true if (c, coverage.TRUE) not in excused),
                      suffixes(c for c in row.never_false if (c, coverage.FALSE) not in excused))
    return table


def suffixes(conjuncts: Iterable[str]) -> str:
    """FRAME-4.1, FRAME-4.3 as .1 .3: the row names the rule."""
    return " ".join(f".{c.rpartition('.')[2]}" for c in conjuncts)


def divergence_text(d: Divergence, files: Sequence[Path]) -> Text:
    """One divergence: direction, rule, what happened, the shrunk program."""
    verdict = d.verdict
    text = Text.assemble((f"{verdict.direction}", COLOURS[verdict.direction]), f": {verdict.summary}\n")
    if verdict.rule:
        text.append(f"  {verdict.rule}: {sentence_of(verdict.rule)}\n", "bold")
    size = f"shrunk from {d.original} actions to {len(d.actions)}" if d.repeats else "not shrunk: run again, it showed nothing"
    text.append(f"  program {d.index}, {size}{file_list(files)}\n", "dim")
    for n, action in enumerate(d.actions[:12]):
        text.append(f"  {n}: {describe(action)}\n")
    if len(d.actions) > 12:
        text.append(f"  … and {len(d.actions) - 12} more\n")
    text.rstrip()
    return text


def file_list(files: Sequence[Path]) -> str:
    """The end of a line that names reproducers."""
    return f" → {' '.join(map(str, files))}" if files else ""


# --- campaigns: documents ----------------------------------------------------------------------------------------------------

def campaign_document(result: CampaignResult) -> dict[str, Any]:
    """A campaign as JSON; `summary` is what scripts rely on."""
    spec = result.spec
    return {
        "summary": {
            "programs": result.programs, "actions": result.actions, "raw": result.raw, "divergences": len(result.divergences),
            "harness_failures": len(result.harness_failures), "model_findings": len(result.model_findings),
            "looseness": dict(sorted(result.looseness.items())),
            "kinds": dict(sorted(kinds_of(result).items())),
            "declared": {name: {"count": n, "reason": DECLARED[name]} for name, n in sorted(result.declared.items())},
            "seconds": round(result.seconds, 3), "seed": result.seed},
        "campaign": {"profile": spec.profile, "target": spec.target, "length": spec.length, "domains": spec.domains,
                     "pages": spec.pages, "frames": spec.frames, "focus": spec.focus, "plant": spec.plant, "raw": spec.raw},
        "commands": coverage.command_rows(result.commands, result.spec.profile),
        "divergent_programs": result.divergent_programs,
        "divergences": [divergence_document(d) for d in result.divergences],
        "harness_failures": [failure_document(f) for f in result.harness_failures],
        "model_findings": [{"program": f.index, "rule": f.rule, "what": f.what} for f in result.model_findings],
        "coverage": [{"rule": r.rule, "decisions": r.decided, "conjuncts": r.conjuncts, "both_ways": r.both,
                      "never_true": list(r.never_true), "never_false": list(r.never_false)}
                     for r in coverage.rule_rows(result.coverage, spec.profile)]}


def divergence_document(d: Divergence) -> dict[str, Any]:
    """One divergence with its shrunk program."""
    return {"program": d.index, "setup": setup_to_json(d.setup), "original_actions": d.original,
            "actions": [action_to_json(a) for a in d.actions], "verdict": verdict_document(d.verdict), "repeats": d.repeats}


def failure_document(f: HarnessFailure) -> dict[str, Any]:
    """One failure of the harness, with the program that caused it."""
    return {"program": f.index, "setup": setup_to_json(f.setup), "what": f.what,
            "actions": [action_to_json(a) for a in f.actions]}


def verdict_document(v: Verdict) -> dict[str, Any]:
    """One verdict."""
    return {
        "direction": str(v.direction), "at": v.at, "rule": v.rule, "sentence": sentence_of(v.rule), "action": v.action,
        "summary": v.summary, "model": v.model and outcome_to_json(v.model), "target": v.target and outcome_to_json(v.target),
        "differences": [{"what": d.what, "where": d.where, "model": d.model, "target": d.target, "rule": d.rule}
                        for d in v.differences],
        "looseness": dict(sorted(v.looseness.items())), "attempts": v.attempts}


def junit(result: CampaignResult) -> str:
    """A campaign as JUnit XML: one test if nothing was found, else a failure a divergence and an error a harness failure."""
    failures, errors = len(result.divergences) + len(result.model_findings), len(result.harness_failures)
    name = f"xenspec fuzz {result.spec.profile} {result.spec.target}"
    cases = max(1, failures + errors)
    counts = {"tests": str(cases), "failures": str(failures), "errors": str(errors), "skipped": "0"}
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(root, "testsuite", {"name": name} | counts)
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in (("seed", result.seed), ("programs", result.programs), ("actions", result.actions)):
        ElementTree.SubElement(properties, "property", name=key, value=str(value))
    if result.clean:
        ElementTree.SubElement(suite, "testcase", classname=name, name=f"seed {result.seed}")
    for d in result.divergences:
        _problem(suite, name, d.index, d.verdict.rule, "failure", d.verdict.direction, d.verdict.summary, listing(d.actions))
    for m in result.model_findings:
        _problem(suite, name, m.index, m.rule, "failure", "model in doubt", m.what, "")
    for f in result.harness_failures:
        _problem(suite, name, f.index, "", "error", Direction.HARNESS, f.what, listing(f.actions))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _problem(suite: ElementTree.Element, classname: str, index: int, rule: str, kind: str, type_: str, message: str,
             text: str) -> None:
    """A test that did not pass."""
    case = ElementTree.SubElement(suite, "testcase", classname=classname, name=" ".join(("program", str(index), rule)).strip())
    problem = ElementTree.SubElement(case, kind, type=type_, message=printable(message))
    problem.text = printable(text)


def printable(text: str) -> str:
    """Without the control characters that XML can't carry."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def listing(actions: Iterable[Action]) -> str:
    """A program for people."""
    return "\n".join(f"{n}: {describe(action)}" for n, action in enumerate(actions))


# --- replay and check --------------------------------------------------------------------------------------------------------

def replay_report(found: Replay, explain: bool) -> RenderableType:
    """A program step by step, then the verdict."""
    parts: list[RenderableType] = [step_text(n, step, explain) for n, step in enumerate(found.steps)]
    return Group(*parts, verdict_text(found.verdict))


def step_text(n: int, step: Step, explain: bool) -> Text:
    """One step: the action, the outcome on both sides, the rule that refused, and if asked all that decided and changed."""
    same = step.target is None or step.target == step.model
    text = Text(f"{n}: {describe(step.action)}\n")
    text.append(f"     model  {show(step.action, step.model)}\n")
    if step.target is not None:
        text.append(f"     target {show(step.action, step.target)}\n", "" if same else "bold red")
    for rule in step.refused:
        text.append(f"     refused by {rule}: {sentence_of(rule)}\n", "yellow")
    if explain:
        for rule, (true, false) in step.decided.items():
            times = f" ({true + false} times)" if true + false > 1 else ""
            text.append(f"     {'✗' if false else '✓'} {rule}{times} {sentence_of(rule)}\n", "dim")
        for change in step.changes:
            text.append(f"     {change}\n", "cyan")
    text.rstrip()
    return text


def verdict_text(verdict: Verdict) -> Text:
    """A verdict with its rule."""
    if verdict.agrees:
        loose = f"; choices met: {counted(verdict.looseness)}" if verdict.looseness else ""
        return Text.assemble(("agrees", "bold green"), f": all {verdict.at} actions are allowed{loose}")
    text = Text.assemble((str(verdict.direction), COLOURS[verdict.direction]), f" at action {verdict.at}: {verdict.summary}")
    if verdict.rule:
        text.append(f"\n  {verdict.rule}: {sentence_of(verdict.rule)}", "bold")
    for d in verdict.differences[1:8]:
        text.append(f"\n  {d.what} of {d.where}: the model has {d.model:#x}, the target {d.target:#x}")
    return text


def replay_document(found: Replay) -> dict[str, Any]:
    """A replayed or checked program as JSON."""
    return {
        "summary": {"divergences": int(not found.verdict.agrees and found.verdict.direction is not Direction.HARNESS),
                    "harness_failures": int(found.verdict.direction is Direction.HARNESS), "actions": found.verdict.at},
        "verdict": verdict_document(found.verdict),
        "steps": [step_document(step) for step in found.steps]}


def step_document(step: Step) -> dict[str, Any]:
    """One step as JSON."""
    return {
        "action": action_to_json(step.action), "model": outcome_to_json(step.model), "target": _outcome(step.target),
        "refused": list(step.refused), "decided": {rule: {"true": t, "false": f} for rule, (t, f) in step.decided.items()},
        "changes": [{"map": c.map, "key": list(c.key), "before": c.before, "after": c.after} for c in step.changes]}


def _outcome(outcome: Outcome | None) -> dict[str, Any] | None:
    return None if outcome is None else outcome_to_json(outcome)


# --- self-tests --------------------------------------------------------------------------------------------------------------

def selftest_line(name: str, found: PlantResult | None) -> str:
    """A campaign of a self-test that has just ended."""
    if found is None:
        return f"{name}: done"
    return f"{name}: {f'found after {found.actions:,} actions' if found.found else 'NOT FOUND'} ({found.seconds:.1f} s)"


def selftest_report(result: SelftestResult) -> RenderableType:
    """A row for each planted bug, then the self-test's verdict."""
    table = plain_table("planted bug", "found", ">actions", ">seconds", ">size", "verdict", "by rule")
    for p in result.plants:
        how = p.trouble if p.verdict is None else str(p.verdict.direction)
        table.add_row(p.name, Text("yes", "green") if p.found else Text("NO", "bold red"), f"{p.actions:,}", f"{p.seconds:.1f}",
                      str(p.size or ""), how, p.verdict.rule if p.verdict else "")
    clean = f"clean target: {result.clean_divergences} divergences in {result.clean.actions:,} actions"
    bugs = f"planted bugs found: {result.found} of {result.planted}, median size {result.median_size:g}"
    verdict = Text("self-test passed", "bold green") if result.passed else Text("self-test FAILED", "bold red")
    return Group(table, *clean_problems(result.clean), Text.assemble(verdict, f": {clean}; {bugs}"))


def clean_problems(clean: CampaignResult) -> list[Text]:
    """What was found where nothing was planted."""
    found = [(d.index, d.verdict.summary) for d in clean.divergences]
    found += [(f.index, f"harness: {f.what}") for f in clean.harness_failures]
    found += [(m.index, f"the model is in doubt: {m.rule} {m.what}") for m in clean.model_findings]
    return [Text(f"clean target, program {index}: {what}", "bold red") for index, what in found]


def selftest_document(result: SelftestResult) -> dict[str, Any]:
    """A self-test as JSON."""
    plants = [{"name": p.name, "summary": p.summary, "historic": p.historic, "found": p.found, "actions": p.actions,
               "seconds": round(p.seconds, 3), "size": p.size, "program": [action_to_json(a) for a in p.program],
               "verdict": p.verdict and verdict_document(p.verdict), "trouble": p.trouble} for p in result.plants]
    return {"summary": {"planted": result.planted, "found": result.found, "clean_divergences": result.clean_divergences},
            "clean": campaign_document(result.clean), "median_size": result.median_size, "plants": plants}


# --- audits ------------------------------------------------------------------------------------------------------------------

def audit_report(violations: Sequence[Violation]) -> RenderableType:
    """Which invariants fail, and where."""
    if not violations:
        return Text("nothing found: every invariant holds at every key", "bold green")
    table = plain_table("rule", "at", "what")
    for v in violations:
        table.add_row(v.rule, ", ".join(f"{k:#x}" for k in v.key), escape(v.text))
    return Group(table, Text(f"{len(violations)} violations", "bold red"))


def audit_document(violations: Sequence[Violation]) -> dict[str, Any]:
    """An audit as JSON."""
    return {"summary": {"violations": len(violations)},
            "violations": [{"rule": v.rule, "key": list(v.key), "text": v.text} for v in violations]}
