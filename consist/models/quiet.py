"""What diffusers and transformers say while they load is held back where nobody can act on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from diffusers.utils import logging as of_diffusers
from transformers.utils import logging as of_transformers


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, both libraries report errors alone and show no bars; after it, as before."""
    with ExitStack() as restore:
        for library in (of_diffusers, of_transformers):
            restore.callback(library.set_verbosity, library.get_verbosity())
            library.set_verbosity(library.ERROR)
            if library.is_progress_bar_enabled():
                restore.callback(library.enable_progress_bar)
                library.disable_progress_bar()
        yield
