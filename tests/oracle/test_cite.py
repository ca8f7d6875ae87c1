"""Rules are found by id and by words, and a rule without implementation, test or proof is shown as a hole."""
import pytest

from oracle import cite
from spec.kernel import RULES


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


def test_holes_are_what_nothing_uses_tests_or_proves() -> None:
    rule = next(r for r in RULES.values() if r.kind == "transition")
    place = cite.Place("somewhere.py", 1)
    assert cite.Citation(rule, None, (), (), (), ()).holes == ["implementation", "test", "proof"]
    assert cite.Citation(rule, None, (place,), (), (place,), (place,)).holes == []
    assert cite.Citation(rule, None, (place,), (), None, None).holes == []       # no source tree: nothing is known
    theorem = next(r for r in RULES.values() if r.kind == "theorem")
    assert cite.Citation(theorem, None, (), (), (place,), ()).holes == ["proof"]
