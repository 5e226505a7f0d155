"""What is left to chance in tests: the same at every run, unless somebody asks for more.

A run that fails for a draw of its own says little about the change at hand, so hypothesis draws
the same examples each time, and so does trio, which runs tasks that are ready in an order drawn by
lot: what runs on a virtual clock runs the same way again. Others are looked for on purpose:

    ./just test --hypothesis-profile=random   # new examples; a failure prints how to replay it
    ./just test --task-order=N                # another order of tasks for each N
"""

from __future__ import annotations

import signal

import pytest
from hypothesis import HealthCheck, settings
from trio._core import _run as scheduler

# Neither knows of other work on the machine: how long an example takes says nothing here.
settings.register_profile(
    "fixed",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "random", settings.get_profile("fixed"), derandomize=False, print_blob=True
)
settings.load_profile("fixed")


# Who runs this in the background of a script ignores Ctrl-C, and so would those who are to get one
# here from the tests that start them.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--task-order", type=int, default=0, help="of trio's tasks: any number")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    order = item.config.getoption("--task-order")
    # pytest-trio has told the scheduler to depend on nothing else than this.
    scheduler._r.seed(f"{order} {item.nodeid}")
