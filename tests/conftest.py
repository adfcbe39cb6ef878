"""What holds for all tests; fixtures are in toy_models.py."""

import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
# tests run beside one another, their models are small, and last bits depend on the number
os.environ["OMP_NUM_THREADS"] = "1"
for library in ("TRANSFORMERS", "DIFFUSERS"):
    os.environ.setdefault(f"{library}_VERBOSITY", "error")
# what a shell starts in the background ignores Ctrl-C, and so would the commands that tests stop
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    """Gives tests their fixtures, unless this process only deals them out to others."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", 0):
        config.pluginmanager.import_plugin("toy_models")
