"""What one visitor of the page may ask of the machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from consist.errors import ConsistError
from consist.runs.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that is drawn, and that waits."""

    pictures: int = 24  # of one run
    letters: int = 400  # of one prompt
    steps: int = 100
    side: int = 1024  # pixels
    jobs: int = 20  # that wait or are drawn

    def check(self, config: RunConfig) -> None:
        """Makes sure that a run is within the limits.

        Raises:
            ConsistError: It is not.
        """
        self.check_prompts(config.prompts)
        refuse_more("denoising steps", config.steps or 0, self.steps)
        for side in (config.width, config.height):
            refuse_more("pixels a side", side or 0, self.side)

    def check_prompts(self, prompts: Sequence[str], drawn: int = 0) -> None:
        """Makes sure that prompts are within the limits, for a run that has some pictures already.

        Raises:
            ConsistError: They are not.
        """
        refuse_more("pictures in a run", drawn + len(prompts), self.pictures)
        for prompt in prompts:
            refuse_more("letters in a prompt", len(prompt), self.letters)


def refuse_more(what: str, given: int, most: int) -> None:
    """Makes sure that no more than ``most`` is asked for.

    Raises:
        ConsistError: It is.
    """
    if given > most:
        raise ConsistError(f"{given} {what} were asked for, and this page draws at most {most}")
