"""A tiny external target, to copy from: the reference model behind the protocol of `xenspec fuzz --target 'cmd:…'`.

An argument breaks it in one of the ways in which targets break: see `break_down`.  A hypervisor in any language does the same:
read a line, do what `do` says, answer with a line.  `xenspec schema` prints the forms (`request`, `reply`).
"""
import json
import os
import sys
import time
from typing import Any

from oracle.encoding import Reader, observation_to_json, outcome_to_json, setup_from_json
from oracle.targets import ModelTarget
from spec.vocabulary import Outcome

target = ModelTarget()                      # where your hypervisor would be


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """One reply to one request."""
    match request["do"]:
        case "hello":
            return {"name": "example", "profiles": ["xen-2003"]}
        case "needs":
            frames, slots = target.needs(request["frames"])
            return {"xen_frames": frames, "xen_slots": list(slots)}
        case "reset":
            target.reset(setup_from_json(request["profile"], request["setup"]))
            return {}
        case "run":
            reader = Reader(target.machine.setup)
            return {"outcomes": [outcome_to_json(o) for o in target.run([reader.action(a) for a in request["actions"]])]}
        case "observe":
            return {"observation": observation_to_json(target.observe(), target.machine.setup)}
        case "close":
            return {}
        case other:
            return {"error": f"no such request: {other}"}


def break_down(how: str, request: dict[str, Any], reply: dict[str, Any]) -> str:
    """The reply as a line, or something worse, when a program is to be run."""
    good = json.dumps(reply)
    if request["do"] != "run":
        return good
    match how:
        case "dies":
            print("Oops: triple fault\nregisters lost", file=sys.stderr, flush=True)
            os.abort()
        case "exits":
            sys.exit(3)
        case "hangs":
            time.sleep(600)
        case "garbage":
            return "Welcome to MyHypervisor 0.1!"
        case "chatters":
            return f"{good}\n{good}"
        case "forgets":
            return json.dumps({"outcomes": reply["outcomes"][:-1]})
        case "nonsense":
            return json.dumps({"outcomes": [{"value": "much"}] * len(reply["outcomes"])})
        case "refuses":
            return json.dumps({"error": "out of memory"})
        case "permits":                     # a bug: no hypercall is ever refused
            allowed = [outcome_to_json(Outcome()) if o.get("value", 0) == -22 else o for o in reply["outcomes"]]
            return json.dumps({"outcomes": allowed})
    return good


def main() -> None:
    """Answer until the input ends, or we are told to close."""
    how = sys.argv[1] if len(sys.argv) > 1 else ""
    for line in sys.stdin:
        request = json.loads(line)
        print(break_down(how, request, answer(request)), flush=True)
        if request["do"] == "close":
            return


if __name__ == "__main__":
    main()
