"""Every command of Xen 4.17's interface is given by a campaign of moderate size, which says how often and how each ended."""
import json

import pytest

from oracle import coverage
from oracle.campaign import run_campaign
from oracle.report import campaign_document
from oracle.runner import CampaignSpec
from refmodel.xen417_commands import COMMANDS, DONE, ERRORS, SHORT

ACTIONS = 40_000
NEVER_DONE = {"unassigned", "mmu_update unassigned", "mmuext_op unassigned", "memory_op unassigned", "memory_op add_to_physmap",
              "memory_op remove_from_physmap", "mmuext_op FLUSH_CACHE", "mmuext_op FLUSH_CACHE_GLOBAL", "mmuext_op MARK_SUPER",
              "mmuext_op UNMARK_SUPER", "set_segment_base unassigned", "callback_op unassigned"}


@pytest.fixture(scope="module")
def result():
    return run_campaign(CampaignSpec(profile="xen-4.17", target="model", seed=9, actions=ACTIONS, workers=1, domains=1))


def test_every_command_is_given(result):
    assert result.clean
    assert coverage.never_given(result.commands) == []


def test_every_command_succeeds_that_can(result):
    done = {name for name, end in result.commands if end == DONE}
    assert {name for names in COMMANDS.values() for name in names} - done == NEVER_DONE


def test_no_command_is_counted_under_another_name(result):
    assert {name for name, _ in result.commands} == {name for names in COMMANDS.values() for name in names}
    assert {end for _, end in result.commands} <= {DONE, SHORT, *ERRORS.values()}


def test_the_document_has_them_by_section(result):
    commands = json.loads(json.dumps(campaign_document(result)))["commands"]
    assert list(commands) == list(COMMANDS)
    normal = commands["§4"]["mmu_update NORMAL"]
    assert normal[DONE] > normal["EINVAL"] > 100
    assert sum(sum(ends.values()) for ends in commands["§10"].values()) == sum(
        n for (name, _), n in result.commands.items() if name.startswith("memory_op"))


def test_the_other_profile_has_none():
    assert coverage.command_rows({}, "xen-2003") == {}
