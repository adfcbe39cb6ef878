"""Where pictures come from: versions of the software, weights of the model, and memory used."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version

from consist.errors import ConsistError
from consist.methods import spell_out
from consist.models.loading import MINI, MINI_FOLDER
from consist.models.weights import digest_of
from consist.runs.config import RunConfig
from consist.runs.folder import RunFolder


def versions(model: str = "") -> dict[str, str]:
    """The versions that a picture may depend on; for the model `mini` also its digest."""
    names = ("consist", "torch", "diffusers", "transformers", "peft")
    found = {"python": platform.python_version(), **{name: version(name) for name in names}}
    return {**found, MINI: digest_of(MINI_FOLDER)} if model == MINI else found


def check_weights(folder: RunFolder, config: RunConfig) -> None:
    """Makes sure that a run of `mini` goes on with the weights that it was begun with.

    Raises:
        ConsistError: It was begun with others, or with some that it does not tell.
    """
    if not has_weights_of(folder, config):
        raise ConsistError(
            f"{folder.path} was drawn with other weights of {config.model} and cannot go on; "
            "draw it anew in another folder, or remove this one"
        )


def check_defaults(folder: RunFolder, config: RunConfig) -> None:
    """Makes sure that what a run leaves open of its method is what it was when the run was begun.

    It has the default of the day, which another version may have changed.

    Raises:
        ConsistError: A field was another when the run was begun.
    """
    begun = folder.read_record().get("resolved", {}).get("method", {})
    now = json.loads(json.dumps(spell_out(config.method)))
    for name in now.keys() - config.method.keys():
        if name in begun and begun[name] != now[name]:
            raise ConsistError(
                f"{folder.path} was begun with {name} {begun[name]}, and this version would go on "
                f"with {now[name]}; draw it anew in another folder, or remove this one"
            )


def has_weights_of(folder: RunFolder, config: RunConfig) -> bool:
    """Whether a run was drawn with the weights that ``config`` would be drawn with.

    Those of other models than `mini` are known by their names alone.
    """
    drawn: dict[str, str] = folder.read_record().get("versions", {})
    return config.model != MINI or drawn.get(MINI) == digest_of(MINI_FOLDER)
