"""The ledger as SARIF 2.1.0, for tools that show findings beside the code: a result for each obligation that is not proved."""
from typing import Any, Final

from oracle.counterexample import counterexample_report
from oracle.report import plain, printable
from proofs import contracts
from proofs.counterexample import Counterexample
from proofs.ledger import LEAVES, PROVED, REFUTED, Ledger, Row
from spec.kernel import RULES, Rule

SCHEMA_URI: Final = "https://json.schemastore.org/sarif-2.1.0.json"
ROOT: Final = "SRCROOT"                     # files are named from the root of the source tree
OTHERS: Final = ("proofs/obligations.py", 1)    # where an obligation about no rule is stated


def sarif(ledger: Ledger) -> dict[str, Any]:
    """The document; it is the same whenever it is repeated.  Its rules are those that a result is about."""
    rows = [row for row in ledger.rows if row.verdict != PROVED]
    ids = [id for id in RULES if any(id in row.rules for row in rows)]
    driver = {"name": "xenspec prove", "rules": [described(RULES[id]) for id in ids]}
    run = {"tool": {"driver": driver}, "originalUriBaseIds": {ROOT: {"description": {"text": "the root of the source tree"}}},
           "automationDetails": {"id": "xenspec/prove/"}, "results": [result(row, ids) for row in rows]}
    return {"$schema": SCHEMA_URI, "version": "2.1.0", "runs": [run]}


def described(rule: Rule) -> dict[str, Any]:
    """A rule, as its results refer to it."""
    return {"id": rule.id, "name": rule.name, "shortDescription": {"text": rule.sentence},
            "properties": {"kind": rule.kind, "source": rule.source, "file": rule.file, "line": rule.line,
                           "fingerprint": rule.fingerprint}}


def result(row: Row, ids: list[str]) -> dict[str, Any]:
    """An obligation that is not proved: at the transition that breaks a rule, under the rule that it breaks."""
    places = [(RULES[id].file, RULES[id].line) for id in row.rules if id in RULES]
    if row.profile == LEAVES:
        places = [("proofs/leaves.py", line_of(row)), *places]
    at, *related = places or [OTHERS]
    found: dict[str, Any] = {
        "level": "error" if row.verdict == REFUTED else "warning", "message": {"text": message(row)},
        "locations": [location(*at)], "partialFingerprints": fingerprints(row),
        "properties": {"profile": row.profile, "obligation": row.name, "verdict": row.verdict, "rules": list(row.rules)}}
    if related:
        found["relatedLocations"] = [location(*place) for place in related]
    if row.rules and row.rules[-1] in ids:
        found |= {"ruleId": row.rules[-1], "ruleIndex": ids.index(row.rules[-1])}
    return found


def location(file: str, line: int) -> dict[str, Any]:
    """A line of the source tree."""
    return {"physicalLocation": {"artifactLocation": {"uri": file, "uriBaseId": ROOT}, "region": {"startLine": line}}}


def line_of(row: Row) -> int:
    """Where the contract of a leaf is."""
    return next((c.first for c in contracts.contracts() if contracts.row_name(c) == row.name), 1)


def fingerprints(row: Row) -> dict[str, str]:
    """By what a finding is recognized: the obligation, and the texts of its rules."""
    texts = {f"{id}/v1": RULES[id].fingerprint for id in row.rules if id in RULES}
    return {"obligation/v1": f"{row.profile}: {row.name}", **texts}


def message(row: Row) -> str:
    """What is not proved, why, and the counterexample for people."""
    text = f"{row.verdict} on {row.profile}: {row.name}: {row.detail}"
    if row.counterexample is not None:
        text += "\n\n" + plain(counterexample_report(Counterexample.read(row.counterexample), row.name))
    return printable(text)
