"""What is not proved, as SARIF: of the standard's form, at the right line, with the counterexample in words."""
import json

import jsonschema
import pytest

from oracle.cite import ROOT
from oracle.sarif import sarif
from proofs.contracts import contracts, row_name
from proofs.ledger import LEAVES, PROVED, REFUTED, UNKNOWN, Ledger, Row
from spec.kernel import RULES
from tests.oracle import samples

# The part of the standard's schema (2.1.0) that the documents use; nothing else may be in them.


def closed(required: str = "", **properties: object) -> dict[str, object]:
    """An object with these properties and no others."""
    return {"type": "object", "properties": properties, "required": required.split(), "additionalProperties": False}


def list_of(items: object) -> dict[str, object]:
    """An array."""
    return {"type": "array", "items": items}


TEXT = {"type": "string"}
MESSAGE = closed("text", text={"type": "string", "minLength": 1})
BAG = {"type": "object"}
LOCATION = closed(physicalLocation=closed(
    artifactLocation=closed(uri={"type": "string", "format": "uri-reference"}, uriBaseId=TEXT),
    region=closed(startLine={"type": "integer", "minimum": 1})))
RULE = closed("id", id=TEXT, name=TEXT, shortDescription=MESSAGE, properties=BAG)
RESULT = closed("message", ruleId=TEXT, ruleIndex={"type": "integer", "minimum": 0}, level={"enum": ["error", "warning"]},
                message=MESSAGE, locations=list_of(LOCATION), relatedLocations=list_of(LOCATION),
                partialFingerprints={"type": "object", "additionalProperties": TEXT}, properties=BAG)
SCHEMA = closed("version runs", **{"$schema": TEXT}, version={"const": "2.1.0"}, runs=list_of(closed(
    "tool", tool=closed("driver", driver=closed("name", name=TEXT, rules=list_of(RULE))), results=list_of(RESULT),
    originalUriBaseIds={"type": "object", "additionalProperties": closed(description=MESSAGE)},
    automationDetails=closed(id=TEXT))))


def row(verdict: str, *rules: str, profile: str = "xen-2003", name: str = "it holds", **more: object) -> Row:
    """A row of the ledger."""
    return Row(profile, name, rules, verdict, 1, 1, 0.1, 0.1, 100, "on path 3", **more)


CONTRACT = contracts()[3]
LEDGER = Ledger((
    row(PROVED, "REF-1"), row(REFUTED, "WRITE-1", "SLOT-1", counterexample=samples.self_mapping_table().document()),
    row(UNKNOWN, "ISO-1", profile="xen-4.17"), row(UNKNOWN), row(REFUTED, profile=LEAVES, name=row_name(CONTRACT))), 1.0)


@pytest.fixture(scope="module")
def run():
    """The only run of the document, as it is read back."""
    document = json.loads(json.dumps(sarif(LEDGER)))
    jsonschema.validate(document, SCHEMA)
    return document["runs"][0]


def place(location):
    """File and line."""
    physical = location["physicalLocation"]
    return physical["artifactLocation"]["uri"], physical["region"]["startLine"]


def test_each_obligation_that_is_not_proved_is_a_result(run):
    assert [result["level"] for result in run["results"]] == ["error", "warning", "warning", "error"]
    assert [result["properties"]["verdict"] for result in run["results"]] == [REFUTED, UNKNOWN, UNKNOWN, REFUTED]


def test_it_is_under_the_rule_that_breaks_and_at_the_transition_that_breaks_it(run):
    first = run["results"][0]
    assert first["ruleId"] == "SLOT-1"
    assert place(first["locations"][0]) == (RULES["WRITE-1"].file, RULES["WRITE-1"].line)
    assert place(first["relatedLocations"][0]) == (RULES["SLOT-1"].file, RULES["SLOT-1"].line)
    for result in run["results"]:
        if "ruleId" in result:
            assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]


def test_rules_come_with_their_sentence_and_fingerprint(run):
    rules = {rule["id"]: rule for rule in run["tool"]["driver"]["rules"]}
    assert set(rules) == {"WRITE-1", "SLOT-1", "ISO-1"}
    assert rules["SLOT-1"]["shortDescription"]["text"] == RULES["SLOT-1"].sentence
    assert rules["SLOT-1"]["properties"]["fingerprint"] == RULES["SLOT-1"].fingerprint
    assert run["results"][0]["partialFingerprints"]["SLOT-1/v1"] == RULES["SLOT-1"].fingerprint


def test_every_place_is_in_the_source_tree(run):
    for result in run["results"]:
        for location in result["locations"] + result.get("relatedLocations", []):
            file, line = place(location)
            assert len((ROOT / file).read_text(encoding="utf-8").splitlines()) >= line
    leaf = place(run["results"][3]["locations"][0])
    assert leaf == ("proofs/leaves.py", CONTRACT.first)


def test_the_message_has_the_counterexample_in_words(run):
    text = run["results"][0]["message"]["text"]
    assert text.startswith("refuted on xen-2003: it holds: on path 3\n\n")
    assert "write_entry(d=dom1, g=2, i=8" in text
    assert "\x1b" not in text


def test_what_is_proved_leaves_nothing():
    document = sarif(Ledger((row(PROVED, "REF-1"),), 1.0))
    jsonschema.validate(document, SCHEMA)
    assert document["runs"][0]["results"] == document["runs"][0]["tool"]["driver"]["rules"] == []
