"""Programs as JSON lines: what is written is read again, and what can't be a program is refused in one line."""
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from oracle.encoding import Reader
from oracle.files import write_whole
from oracle.program import Program, dump, dumps, load, loads
from oracle.schema import ProgramError, schema, validator
from spec.abi import L1, L2, WRITABLE
from spec.vocabulary import (
    FREE_FRAME,
    KILLED,
    PRIVILEGED,
    SEGMENT_REGISTERS,
    Access,
    Context,
    DomainSetup,
    Execute,
    FarTransfer,
    Hypercall,
    Interrupt,
    Load,
    LoadSegment,
    Observation,
    Outcome,
    Privileged,
    Return,
    Setup,
    Store,
    SystemCall,
    pack_frame,
)

SETUP = Setup("xen-2003", 2048, 16, (DomainSetup(0, 16, 64), DomainSetup(1, 81, 64)), tuple(range(0x63, 0x63 + 16 * 4096, 4096)))
BIG = Setup("xen-4.17", 1 << 20, 16, (DomainSetup(0, 16, 64),))


# --- what is written is read again -------------------------------------------------------------------------------------------

def words(setup: Setup) -> st.SearchStrategy[int]:
    """Words of the profile."""
    return st.integers(0, (1 << (32 if setup is SETUP else 64)) - 1)


@st.composite
def transfers(draw: st.DrawFn, setup: Setup, dom: int) -> Any:
    """Any control transfer."""
    word, selector = words(setup), st.integers(0, 0xFFFF)
    at = Context(draw(selector), draw(word), draw(word), draw(word), *(draw(selector) for _ in range(5)))
    data = ((0x1000, (draw(word),)),) if draw(st.booleans()) else ()
    return draw(st.sampled_from([
        FarTransfer(dom, at, "ret", 0, 0, data), FarTransfer(dom, at, "jmp", draw(selector), draw(word), data),
        Interrupt(dom, at, draw(st.integers(0, 255)), data), Return(dom, at, data),
        Access(dom, at, draw(word), draw(st.booleans()), data),
        Privileged(dom, at, draw(st.sampled_from(list(PRIVILEGED))), data),
        FarTransfer(dom, at, "call", 1, 0, data) if setup is SETUP else SystemCall(dom, at, data)]))


@st.composite
def actions(draw: st.DrawFn, setup: Setup) -> Any:
    """Any action of a domain of the setup."""
    dom, word = draw(st.sampled_from([d.domid for d in setup.domains])), words(setup)
    size = 4 if setup is SETUP else 8
    match draw(st.sampled_from("hlsxgtttt" if setup is SETUP else "hlsxtttt")):
        case "h":
            places = st.tuples(word, st.integers(0, 4096 // size - 4)).map(lambda p: (p[0] & ~0xFFF) + p[1] * size)
            data = draw(st.lists(st.tuples(places, st.lists(word, min_size=1, max_size=4).map(tuple)), max_size=3).map(tuple))
            return Hypercall(dom, draw(st.integers(0, 300)), draw(st.lists(word, max_size=5).map(tuple)), data)
        case "l":
            return Load(dom, draw(word), draw(st.booleans()))
        case "s":
            return Store(dom, draw(word), draw(word), draw(st.booleans()))
        case "g":
            register = draw(st.sampled_from(list(SEGMENT_REGISTERS)))
            return LoadSegment(dom, register, draw(st.integers(0, 0xFFFF)), draw(st.booleans()))
        case "t":
            return draw(transfers(setup, dom))
        case _:
            return Execute(dom, draw(word), draw(st.booleans()))


def outcomes(setup: Setup) -> st.SearchStrategy[Outcome]:
    """Any outcome."""
    chose = st.lists(st.integers(0, setup.frames - 1), max_size=3).map(tuple)
    landing = st.lists(words(setup), min_size=9, max_size=9).map(tuple)
    return st.one_of(st.builds(Outcome, value=words(setup) | st.integers(-4095, -1), chose=chose), st.just(Outcome(KILLED)),
                     st.builds(Outcome, value=words(setup), address=words(setup), landing=landing),
                     st.builds(Outcome, vector=st.integers(0, 31), error=st.integers(0, 31), address=words(setup)))


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Any program, with or without outcomes."""
    setup = draw(st.sampled_from([SETUP, BIG]))
    done = draw(st.lists(actions(setup), max_size=6))
    seen = draw(st.none() | st.lists(outcomes(setup), min_size=len(done), max_size=len(done)))
    return Program(setup, done, seen or None, note=draw(st.sampled_from(["", "für Menschen"])))


@given(programs())
def test_what_is_written_is_read_again(program: Program) -> None:
    assert loads(dumps(program)) == program


@given(programs())
def test_what_is_written_obeys_the_schema(program: Program) -> None:
    header, *rest = [json.loads(line) for line in dumps(program).splitlines()]
    assert validator("header").is_valid(header)
    for doc in rest:
        assert validator("action").is_valid(doc)


def observation() -> Observation:
    """Of a machine with four frames beyond Xen's: a full page, a table, a page of zeros, a free one."""
    frames = [pack_frame(0x7FF2, 0, 0, 0, False)] * 16 + [
        pack_frame(0, WRITABLE, 1, 1, False), pack_frame(0, L2, 2, 3, True), pack_frame(1, L1, 1, 2, False), FREE_FRAME]
    table = bytes(8) + bytes.fromhex("63000100") + bytes(4096 - 16) + bytes.fromhex("67100100")
    memory = b"\xcb" * 4096 + table + bytes(8192)
    m2p = b"\xff" * 64 + bytes(4) + bytes.fromhex("01000000") + b"\xff" * 8
    return Observation(20, b"".join(w.to_bytes(8, "little") for w in frames), memory, m2p, {0: 17, 1: 18})


def test_an_observation_is_read_again() -> None:
    program = Program(SETUP, [Load(0, 0xC0000000)], [Outcome(0xCBCBCBCB)], observation())
    text = dumps(program)
    assert loads(text) == program
    assert validator("last").is_valid(json.loads(text.splitlines()[-1]))
    assert len(text) < 1500                 # a page full of one word is one run


def test_addresses_are_written_in_hexadecimal_and_read_either_way() -> None:
    text = dumps(Program(SETUP, [Store(1, 0xC0001000, 5)]))
    assert '"va": "0xc0001000"' in text
    assert loads(text.replace('"0xc0001000"', str(0xC0001000))).actions == [Store(1, 0xC0001000, 5)]
    assert loads(text.replace('"0xc0001000"', '"0xC0001000"')).actions == [Store(1, 0xC0001000, 5)]


# --- what can't be a program -------------------------------------------------------------------------------------------------

HEADER = ('{"xenspec": 1, "profile": "xen-2003", "setup": {"frames": 2048, "xen_frames": 16, '
          '"domains": [{"domid": 0, "first": 16, "pages": 64}, {"domid": 1, "first": 81, "pages": 64}]}}')
LOAD = '{"dom": 0, "do": "load", "va": "0xc0000000"}'


def call(**more: Any) -> str:
    """A line with a hypercall."""
    return json.dumps({"dom": 0, "do": "hypercall", "nr": 1, "args": [], **more})


@pytest.mark.parametrize(("line", "field", "what"), [
    ('{"dom": 0, "do": "load", "va": "0xc00', "", "truncated"),
    ("[1]", "do", "not an object"),
    ("17", "do", "not an object"),
    ('{"dom": 0}', "do", "missing"),
    ('{"dom": 0, "do": "smash", "va": 1}', "do", 'unknown action "smash" (known: hypercall, load, store, execute, load_seg'),
    ('{"dom": 0, "do": "load_segment", "register": "cs", "selector": 9}', "register", "cs"),
    ('{"dom": 0, "do": "load_segment", "register": "ds", "selector": "0x10000"}', "selector", "out of range"),
    ('{"dom": 0, "do": "load_segment", "register": "ds", "va": 9}', "selector", "missing"),
    ('{"dom": 0, "do": "return"}', "at", "missing"),
    ('{"dom": 0, "do": "return", "at": {"cs": 1, "eip": 2, "eflags": 2, "esp": 4}}', "at.ss", "missing"),
    ('{"dom": 0, "do": "return", "at": {"cs": "0x10000", "eip": 2, "eflags": 2, "esp": 4, "ss": 5}}', "at.cs", "out of range"),
    ('{"dom": 0, "do": "return", "at": {"cs": 1, "eip": 2, "eflags": 2, "esp": 4, "ss": 5, "ip": 6}}', "at.ip", "unknown field"),
    ('{"dom": 0, "do": "privileged", "at": {"cs": 1, "eip": 2, "eflags": 2, "esp": 4, "ss": 5}, "instruction": "fly"}',
     "instruction", "fly"),
    ('{"dom": 0, "do": "system_call", "at": {"cs": 1, "eip": 2, "eflags": 2, "esp": 4, "ss": 5}}', "do", "no SYSCALL"),
    ('{"dom": 0, "do": ["load"], "va": 1}', "do", "unknown action"),
    ('{"do": "load", "va": 1}', "dom", "missing"),
    ('{"dom": 0, "do": "load"}', "va", "missing"),
    ('{"dom": 0, "do": "store", "va": 1}', "value", "missing"),
    ('{"dom": 7, "do": "load", "va": 1}', "dom", "there is no domain 7 (the setup has 0, 1)"),
    ('{"dom": true, "do": "load", "va": 1}', "dom", "true is not of type integer"),
    ('{"dom": "0x1", "do": "load", "va": 1}', "dom", "not of type integer"),
    ('{"dom": 0, "do": "load", "va": 1, "vaddr": 2}', "vaddr", "unknown field (known: dom, do, va, user, outcome)"),
    ('{"dom": 0, "do": "load", "va": 1, "va": 2}', "va", "is there twice"),
    ('{"dom": 0, "do": "load", "va": -1}', "va", "-1 is out of range"),
    ('{"dom": 0, "do": "load", "va": 4294967296}', "va", "0x100000000 is out of range (0 to 0xffffffff)"),
    ('{"dom": 0, "do": "load", "va": "0x1ffffffffffffffff"}', "va", "not a number"),
    ('{"dom": 0, "do": "load", "va": "c0000000"}', "va", "not a number"),
    ('{"dom": 0, "do": "load", "va": 1.5}', "va", "1.5 is not of type integer or string"),
    ('{"dom": 0, "do": "load", "va": NaN}', "", "NaN"),
    ('{"dom": 0, "do": "load", "va": 1e400}', "va", "Infinity"),
    ('{"dom": 0, "do": "load", "va": 1, "user": 1}', "user", "1 is not of type boolean"),
    (call(args=[0, "0xg"]), "args[1]", "not a number"),
    (call(args=[0] * 6), "args", "passes at most 5"),
    (call(nr=-1), "nr", "-1 is out of range"),
    (call(data=[["0xc0001002", [1]]]), "data[0][0]", "not aligned to a word of 4 bytes"),
    (call(data=[["0xc0001ffc", [1, 2]]]), "data[0][1]", "2 words from 0xc0001ffc cross the end of a page"),
    (call(data=[["0xc0001000", []]]), "data[0][1]", "too few elements"),
    (call(data=[["0xc0001000"]]), "data[0]", "too few elements"),
    (call(data=[["0xc0001000", [1, 1 << 32]]]), "data[0][1][1]", "out of range"),
    (call(outcome={}), "outcome", "should be non-empty"),
    (call(outcome={"value": 1, "fault": {"vector": 14}}), "outcome", "either a value or a fault"),
    (call(outcome={"fault": {"error": 2}}), "outcome.fault.vector", "missing"),
    (call(outcome={"value": -(1 << 40)}), "outcome.value", "out of range"),
    (call(outcome={"value": 0, "chose": [5000]}), "outcome.chose[0]", "out of range"),
    (HEADER, "do", "missing"),
    ('{"observation": {}}', "observation.extent", "missing"),
    ('{"observation": {"extent": 17, "frames": [], "m2p": [], "memory": [], "base": {}}}', "observation.frames", "0 elements"),
])
def test_a_bad_line_is_named_with_its_field(line: str, field: str, what: str) -> None:
    with pytest.raises(ProgramError) as caught:
        loads(f"{HEADER}\n{LOAD}\n{line}\n", "p.jsonl")
    message = str(caught.value)
    assert message.startswith(f"p.jsonl:3: {field}")
    assert what in message
    assert "\n" not in message
    assert len(message) < 300


@pytest.mark.parametrize(("old", "new", "field", "what"), [
    ('{"xenspec": 1, ', "{", "xenspec", "missing: the first line must be a header"),
    ('"xenspec": 1', '"xenspec": 2', "xenspec", "2 must be 1"),
    ('"xen-2003"', '"xen-9"', "profile", 'unknown profile "xen-9" (known: xen-2003, xen-4.17)'),
    ('"profile": "xen-2003", ', "", "profile", "missing"),
    ('"setup":', '"set-up":', "setup", "missing"),
    ('"frames": 2048', '"frames": 0', "setup.frames", "0 is not between 146, where the last domain ends, and 1048576"),
    ('"frames": 2048', '"frames": 2097152', "setup.frames", "2097152 is not between 146"),
    ('"frames": 2048', '"frames": 140', "setup.frames", "140 is not between 146"),
    ('"xen_frames": 16', '"xen_frames": 17', "setup.domains[0].first", "frame 16 is taken"),
    ('"xen_frames": 16', '"xen_frames": 16, "xen_slots": [1]', "setup.xen_slots", "1 words, not 16"),
    ('"first": 81', '"first": 80', "setup.domains[1].first", "frame 80 is taken"),
    ('"domid": 1', '"domid": 0', "setup.domains[1].domid", "domain 0 is there twice"),
    ('"domid": 1', '"domid": 32752', "setup.domains[1].domid", "32752 is not a domain's number"),
    ('"pages": 64}]', '"pages": 2}]', "setup.domains[1].pages", "2 pages do not hold a domain"),
    ('"pages": 64}]', '"pages": "many"}]', "setup.domains[1].pages", "not a number"),
])
def test_a_bad_header_is_named_with_its_field(old: str, new: str, field: str, what: str) -> None:
    with pytest.raises(ProgramError) as caught:
        loads(HEADER.replace(old, new) + f"\n{LOAD}\n", "p.jsonl")
    assert str(caught.value).startswith(f"p.jsonl:1: {field}: ")
    assert what in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [
    ("", "p:1: xenspec: missing: the file is empty"),
    ("\n\n", "p:2: xenspec: missing: the file is empty"),
    (f"{LOAD}\n", "p:1: xenspec: missing: the first line must be a header"),
    ("[" * 100_000, "p:1: nested too deep"),
    (f'{HEADER[:-1]}, "actions": 3}}\n{LOAD}\n{LOAD}\n', "p:3: actions: truncated? The header promises 3, but there are 2"),
    (f"{HEADER}\n{LOAD[:-1]}, \"outcome\": {{\"value\": 0}}}}\n{LOAD}\n", "p:3: outcome: missing: the action before has one"),
    (f"{HEADER}\n{LOAD}\n{LOAD[:-1]}, \"outcome\": {{\"value\": 0}}}}\n", "p:3: outcome: only some actions have one"),
])
def test_a_bad_file_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ProgramError) as caught:
        loads(text, "p")
    assert str(caught.value).startswith(message)


def test_nothing_follows_an_observation() -> None:
    text = dumps(Program(SETUP, [], None, observation()))
    with pytest.raises(ProgramError, match=r"^p:3: observation: must be in the last line"):
        loads(text.replace(', "actions": 0', "") + LOAD, "p")


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="No such file"):
        load(tmp_path / "none.jsonl")
    with pytest.raises(ProgramError, match="Is a directory"):
        load(tmp_path)
    (tmp_path / "p").write_bytes(HEADER.encode() + b"\n\xff\xfe")
    with pytest.raises(ProgramError, match=r"p:2: not UTF-8 text"):
        load(tmp_path / "p")


# --- the decoder and the schema agree ----------------------------------------------------------------------------------------

JUNK = st.sampled_from([None, True, -1, 0, 1.0, 1.5, 1 << 40, 1 << 70, "0x10", "0xzz", "x", [], [1], {}, {"a": 1}])


@st.composite
def spoiled(draw: st.DrawFn) -> Any:
    """The JSON form of an action with an outcome, at up to two places replaced by junk, or with a field too many or too few."""
    setup = SETUP
    program = Program(setup, [draw(actions(setup))], [draw(outcomes(setup))])
    doc = json.loads(dumps(program).splitlines()[1])
    for _ in range(draw(st.integers(0, 2))):
        place: Any = doc
        while isinstance(place, dict | list) and place:
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if draw(st.booleans()) or not isinstance(place[key], dict | list) or not place[key]:
                if isinstance(place, dict) and draw(st.integers(0, 3)) == 0:
                    del place[key]
                    place["extra"] = draw(JUNK)
                else:
                    place[key] = draw(JUNK)
                break
            place = place[key]
    return doc


@given(spoiled())
def test_the_decoder_refuses_all_that_the_schema_refuses(doc: Any) -> None:
    reader = Reader(SETUP)
    try:
        reader.action(doc)
        if "outcome" in doc:
            reader.outcome(doc["outcome"])
    except ProgramError as e:
        event("refused" if "can't be read" not in str(e) else "refused, and nobody knows why")
    else:
        assert validator("action").is_valid(doc)


def test_the_schema_is_one() -> None:
    validator("header").check_schema(schema())


# --- files appear whole or not at all ----------------------------------------------------------------------------------------

def test_an_unwritable_place_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"missing/p\.jsonl"):
        dump(Program(SETUP, []), tmp_path / "missing" / "p.jsonl")
    (tmp_path / "d").mkdir()
    with pytest.raises(OSError, match="d"):
        dump(Program(SETUP, []), tmp_path / "d")
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        dump(Program(SETUP, []), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_has_the_usual_mode_and_an_old_one_keeps_its_own(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    write_whole(tmp_path / "b", "text")
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == stat.S_IMODE((tmp_path / "a").stat().st_mode)
    (tmp_path / "b").chmod(0o600)
    write_whole(tmp_path / "b", "text")
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o600
