"""Draws many sets through the page's queue, and reports what is left behind.

Memory of the process, its threads and its open files, and the hooks and the attention processors of
the model are counted after the first sets, after each one more, and at the end. Fails where hooks,
processors, threads or files are left that were not there after the first sets.
"""

import argparse
import tempfile
from pathlib import Path
from threading import Thread

from gradio_client import Client
from rich.console import Console
from rich.table import Table

from consist.app.actions import Studio
from consist.app.limits import Limits
from consist.app.server import make_server
from consist.cli.console import hide_loading_bars, progress_bar
from consist.models.loading import MINI
from consist.runs.config import RunConfig
from consist.runs.folder import find_runs
from consist.runs.memory import count_held, resident_mib

PROMPTS = "a cat in Paris\na cat on the moon"
HOST = "127.0.0.1"
WARM = 5  # sets, after which all threads that are kept have begun


def count(studio):
    """What there is now, by name; MiB of memory."""
    pipe = studio.model_for(RunConfig(prompts=("a cat",), seeds=(0,), model=studio.models[0])).pipe
    return {"memory, MiB": resident_mib(), **count_held(pipe.unet)}


def soak(studio, sets, steps):
    """Draws the sets, and gives what there was at first, halfway, at most and at the end."""
    server, bound = make_server(studio, HOST, 0)
    thread = Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    client = Client(f"http://{HOST}:{bound.getsockname()[1]}", verbose=False)
    try:
        with progress_bar("soaking") as watch:
            for number in range(sets):
                client.predict(PROMPTS, False, str(steps), str(2 * number), api_name="/draw")
                now = count(studio)
                if number < WARM:
                    first = half = peak = now
                if number == sets // 2:
                    half = now
                peak = {name: max(value, now[name]) for name, value in peak.items()}
                watch(number + 1, sets)
    finally:
        client.close()
        server.should_exit = True
        thread.join()
        studio.jobs.close()
    return first, half, peak, now


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=200)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    hide_loading_bars()
    with tempfile.TemporaryDirectory() as folder:
        studio = Studio(Path(folder), (MINI,), Limits())
        found = soak(studio, options.sets, options.steps)
        finished = sum(run.read_record()["finished"] for run in find_runs(Path(folder)))
    table = Table(f"{finished} sets of 2 pictures", "start", "halfway", "peak", "end", box=None)
    for name in found[0]:
        table.add_row(name, *(f"{state[name]:.0f}" for state in found))
    Console().print(table)
    first, *_, last = found
    left = [name for name in first if name != "memory, MiB" and last[name] > first[name]]
    if left or finished < options.sets:
        parser.exit(1, f"left behind: {', '.join(left) or 'sets that are not finished'}\n")


if __name__ == "__main__":
    main()
