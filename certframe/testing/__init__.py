"""The conformance kit: what a plugin class has to keep to, as checks that its author can run.

In a test of a plugin, one line gives one test for each check:

    test_conformance = conformance_tests("attributor", MyAttributor, options={"masks": 64})

`run_checks` returns a report instead, `check_plugin` raises, and ``certframe plugin check NAME`` does it for whatever
is installed. `checks_for` lists the checks of a kind with what each demands.

A class whose defaults do not do for a check (an option is required, or the defaults take minutes) says what does:

    @classmethod
    def conformance_options(cls, directory: Path) -> dict[str, object]:
        return {"masks": 64}

It is given an empty folder for files that the options need. An attributor that only works on some models has a
classmethod ``conformance_model()`` that returns a small one of them, a new one each time. A metric that requires more
of an explanation than a model has a classmethod ``conformance_extras(explanation)`` that returns those extras. All
three are optional; only the kit calls them.

`fixtures` has the small model, the noisy images, tallies and explanations that the checks use, and `emulated_device` an
accelerator for machines without one.
"""

from certframe.testing import fixtures
from certframe.testing.emulated_device import DeviceMixError, EmulatedDevice, EmulationUnavailable, emulated_device
from certframe.testing.kit import (
    Check,
    ConformanceError,
    NotApplicable,
    Report,
    Result,
    Subject,
    Violation,
    check_plugin,
    checks_for,
    run_checks,
)
from certframe.testing.pytest_tests import conformance_tests, settle

__all__ = [
    "Check", "ConformanceError", "DeviceMixError", "EmulatedDevice", "EmulationUnavailable", "NotApplicable", "Report",
    "Result", "Subject", "Violation", "check_plugin", "checks_for", "conformance_tests", "emulated_device", "fixtures",
    "run_checks", "settle",
]
