"""What all tests share: Hypothesis profiles, by HYPOTHESIS_PROFILE.

`ci` repeats exactly and is the default; `dev` searches anew on every run; `crosshair` lets CrossHair choose the examples by what
the code does with them: few and slow, but it finds needles.
"""
import importlib.util
import os

import pytest
from hypothesis import HealthCheck, settings

WANTED = os.environ.get("HYPOTHESIS_PROFILE", "ci")

settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("dev", max_examples=500, deadline=None, print_blob=True)
if importlib.util.find_spec("hypothesis_crosshair_provider") is not None:
    settings.register_profile("crosshair", backend="crosshair", max_examples=50, deadline=None, database=None,
                              suppress_health_check=list(HealthCheck))
elif WANTED == "crosshair":
    raise pytest.UsageError("HYPOTHESIS_PROFILE=crosshair needs hypothesis-crosshair: pip install 'xenspec[proofs]'")
settings.load_profile(WANTED)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one loud line what a machine without the real Xen has not tested."""
    reasons = [str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", [])
               if isinstance(report.longrepr, tuple) and "NOT TESTED" in report.longrepr[2]]
    if reasons:
        terminalreporter.write_line(f"{len(reasons)} tests {reasons[0].removeprefix('Skipped: ')}", red=True, bold=True)
