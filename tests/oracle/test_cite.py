"""Rules are found by id and by words, and a rule without implementation, test or proof is shown as a hole."""
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from oracle import cite, proved
from oracle.proved import Proof, Proofs, proof_lines
from oracle.report import plain
from proofs import runner
from proofs.ledger import LEAVES, PROVED, Row
from proofs.obligations import Obligation, keeping, select
from spec.kernel import RULES, Rule


def test_a_rule_is_found_by_its_id_in_any_case() -> None:
    for rule in RULES.values():
        assert cite.cite(rule.id.lower()).rule is rule


def test_a_conjunct_is_found_in_its_rule() -> None:
    rule = next(r for r in RULES.values() if len(r.conjuncts) > 2)
    found = cite.cite(rule.conjuncts[1].id)
    assert found.rule is rule
    assert found.conjunct == rule.conjuncts[1]
    assert cite.document(found)["asked"] == rule.conjuncts[1].id


def test_an_unknown_id_names_the_closest_ones() -> None:
    rule = next(iter(RULES))
    name = rule.partition("-")[0]
    with pytest.raises(cite.NoSuchRule, match=f"there is no rule {name}-99; close to it: .*{name}-"):
        cite.cite(f"{name}-99")


def test_a_document_has_all_that_a_citation_needs() -> None:
    for found in cite.all_citations():
        doc = cite.document(found)
        rule = found.rule
        assert doc["sentence"] == rule.sentence
        assert doc["fingerprint"] == rule.fingerprint
        assert len(doc["conjuncts"]) == len(rule.conjuncts)
        assert (cite.ROOT / doc["file"]).is_file()
        lines = (cite.ROOT / doc["file"]).read_text(encoding="utf-8").splitlines()
        assert rule.id in "".join(lines[doc["line"] - 1:doc["line"] + 2])
        for conjunct in doc["conjuncts"]:
            assert f'"{conjunct["id"]}"' in lines[conjunct["line"] - 1]


def test_what_performs_a_rule_is_a_line_that_names_it() -> None:
    seen = 0
    for found in cite.all_citations():
        for place in found.users:
            line = (cite.ROOT / place.file).read_text(encoding="utf-8").splitlines()[place.line - 1]
            assert found.rule.name in line or found.rule.id in line
            seen += 1
    assert seen > len(RULES) // 2


def test_the_bugs_that_broke_a_rule_are_told() -> None:
    bug = cite.historic_bugs()[0]
    for rule in bug["rules"]:
        assert any(line.startswith(bug["id"]) for line in cite.cite(rule).history)


def test_what_programs_do_not_decide_is_told_with_the_reason() -> None:
    unreached = cite.document(cite.cite("REF-2"))["unreached"]
    assert {(u["profile"], u["conjunct"], u["way"]) for u in unreached} == {
        (profile, conjunct, "false") for profile in ("xen-2003", "xen-4.17") for conjunct in ("REF-2.1", "REF-2.2")}
    lines = cite.excuses(cite.cite("REF-2.2").unreached)
    assert lines == [f"REF-2.2 never false by programs on xen-2003 and xen-4.17: {unreached[-1]['reason']}"]


def test_words_rank_rules() -> None:
    rule = next(r for r in RULES.values() if r.kind == "transition")
    assert cite.search([rule.name])[0][1] is rule
    scores = [score for score, _ in cite.search(["frame", "owner"])]
    assert scores == sorted(scores, reverse=True)
    with pytest.raises(cite.NoSuchRule, match="no rule says anything of xyzzy"):
        cite.search(["xyzzy"])


def proof(rule: Rule, proved: bool, profile: str = "xen-2003", subject: str = "") -> Proof:
    """An obligation about a rule."""
    return Proof(profile, f"{rule.name} holds", subject or rule.id, (rule.id,), proved)


def test_holes_are_what_nothing_uses_tests_or_proves() -> None:
    rule = next(r for r in RULES.values() if r.kind == "transition")
    place, known = cite.Place("somewhere.py", 1), Proofs(own=(proof(rule, False),))
    assert cite.Citation(rule, None, (), (), (), Proofs()).holes == ["implementation", "test", "proof"]
    assert cite.Citation(rule, None, (place,), (), (place,), known).holes == []         # there is one to prove
    assert cite.Citation(rule, None, (place,), (), None, None).holes == []       # no source tree, no solver: nothing is known
    theorem = next(r for r in RULES.values() if r.kind == "theorem")
    assert cite.Citation(theorem, None, (), (), (place,), Proofs(leaves=(proof(theorem, True),))).holes == ["proof"]


# --- proofs ------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def remembers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[Callable[[Obligation], bool]], None]]:
    """Work in a folder in which the obligations that are chosen were proved."""
    monkeypatch.chdir(tmp_path)
    folder, versions = tmp_path / runner.CACHE, runner.caches(tmp_path / runner.CACHE)

    def remember(chosen: Callable[[Obligation], bool]) -> None:
        for o in filter(chosen, select(None, "")):
            versions[o.profile].put(o, Row(o.profile, o.name, o.about, PROVED, 1, 1, 0.1, 0.1, 100))
        proved.obligations.cache_clear()
        assert folder.is_dir()
    proved.obligations.cache_clear()
    yield remember
    proved.obligations.cache_clear()


def lines(id: str) -> list[str]:
    """What is said of the proofs of a rule."""
    found = cite.cite(id)
    assert found.proofs is not None
    return list(proof_lines(found.proofs, found.rule))


def test_a_transition_shows_its_own_obligations(remembers: Callable[..., None]) -> None:
    count = len(keeping("xen-2003", RULES["REF-1"]))
    assert lines("REF-1")[0] == f"{2 * count} obligations: not proved yet: run `xenspec prove`"
    assert lines("REF-1")[1] == "take_ref can happen"
    remembers(lambda o: o.subject == "REF-1" and (o.profile, o.part) != ("xen-4.17", "happens"))
    assert lines("REF-1")[0] == f"{2 * count} obligations: {2 * count - 1} proved, 1 not proved yet: run `xenspec prove`"
    assert lines("REF-1")[1] == "take_ref can happen (not yet on xen-4.17)"
    assert lines("REF-1")[2] == "take_ref leaves no trace when it is refused"
    assert len(lines("REF-1")) == 1 + count
    remembers(lambda o: o.subject == "REF-1")
    assert lines("REF-1")[0] == f"{2 * count} obligations: proved"


def test_an_invariant_shows_which_transitions_keep_it(remembers: Callable[..., None]) -> None:
    remembers(lambda o: "SLOT-2" in o.about and o.subject in ("initial", "REF-1", "REF-2"))
    shown = lines("SLOT-2")
    assert shown[1] == "kept by the initial state, take_ref, drop_ref"
    assert shown[2].startswith("not yet by take_type, drop_type, ")
    transitions = [r.name for r in RULES.values() if r.kind == "transition"]
    assert cite.document(cite.cite("SLOT-2"))["proofs"]["kept_by"] == ["the initial state", *transitions]


def test_what_is_known_is_known_of_the_rules_as_they_are(remembers: Callable[..., None],
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    remembers(lambda o: o.subject == "ISO-3")
    assert lines("ISO-3")[0].endswith("proved")
    monkeypatch.setattr(runner, "fingerprint", lambda *_, **__: "another text")
    proved.obligations.cache_clear()
    assert "not proved yet" in lines("ISO-3")[0]


@pytest.mark.parametrize("guard", [rule for rule in RULES.values() if rule.kind == "guard"], ids=lambda rule: rule.id)
def test_a_guard_is_proved_as_a_part_of_the_transitions_that_ask_it(guard: Rule) -> None:
    found = cite.cite(guard.id).proofs
    assert found is not None
    users = {RULES[p.subject].name for p in found.through}
    asking = [r for r in RULES.values() if r.kind == "transition" and f"{guard.name}(" in inspect.getsource(r.function)]
    assert users == {r.name for r in asking}
    assert f"as a part of {', '.join(r.name for r in asking)}" in lines(guard.id)
    assert "proof" not in cite.cite(guard.id).holes


def test_contracts_of_leaves_are_told_but_are_no_proof_of_the_rule(remembers: Callable[..., None]) -> None:
    remembers(lambda o: o.profile == LEAVES)
    assert lines("WRITE-1")[-1].startswith("functions that it calls: ")
    assert lines("WRITE-1")[-1].endswith(" contracts: proved")
    assert "not proved yet" in lines("WRITE-1")[0]


def test_a_check_says_what_stands_in_for_a_proof() -> None:
    check = next(rule for rule in RULES.values() if rule.kind == "check")
    assert lines(check.id) == [f"no obligation is about it: {proved.instead(check)}"]
    assert "proof" in cite.cite(check.id).holes
    assert cite.document(cite.cite(check.id))["proofs"]["instead"] == proved.instead(check)


def test_holes_stand_out_from_those_by_nature() -> None:
    shown = plain(cite.holes_report([c for c in cite.all_citations() if c.holes]))
    table, by_nature = shown.split("no proof of ", 1)
    assert "TOKEN-1" in by_nature
    assert "PTE-1" in by_nature
    assert "PTE-1 " not in table
    assert "proof" not in table.split("\n", 1)[0]
    assert {c.rule.id for c in cite.all_citations() if "proof" in c.holes and not c.is_excused} == set()


def test_it_works_without_the_solver(tmp_path: Path) -> None:
    (tmp_path / "z3.py").write_text("raise ModuleNotFoundError(\"No module named 'z3'\", name='z3')\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{cite.ROOT}"}

    def run(*args: str) -> str:
        code = f"import sys; from oracle.cli import main; sys.argv = ['xenspec', 'cite', *{args}]; main()"
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False).stdout
    assert "the solver is not installed" in run("REF-1")
    assert json.loads(run("REF-1", "--json"))["rules"][0]["proofs"] is None
    assert "proof 0" in run("--holes")
