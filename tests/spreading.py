"""What torchrun runs in ``test_spread``: draws runs with all processes.

``spreading.py FOLDER`` draws the configs of ``FOLDER/runs.json``, by name, into its subfolders.
"""

import json
import sys
from pathlib import Path

from consist.errors import ConsistError
from consist.runs.config import RunConfig
from consist.runs.many.one_batch import generate_across
from consist.runs.many.ranks import joined
from consist.runs.many.worklist import unwatched


def main(folder: Path) -> None:
    with joined("cpu") as ranks:
        for name, fields in json.loads((folder / "runs.json").read_text()).items():
            try:
                generate_across(ranks, RunConfig.from_json(fields), folder / name, unwatched)
            except ConsistError as error:
                (folder / f"{name}-{ranks.rank}.txt").write_text(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
