"""A model that several runs share."""

from __future__ import annotations

from consist.models.loading import Model
from consist.runs.config import RunConfig
from consist.runs.drawing import load_model


class SharedModel:
    """Loads a model once for all runs that draw with it; for ``model_for`` of ``generate``."""

    def __init__(self) -> None:
        self._key: tuple[str, ...] = ()
        self._model: Model | None = None

    def __call__(self, config: RunConfig) -> Model:
        """The model of a config, as loaded before if that may be."""
        # LoRAs stay on a pipeline, and a scheduler stays until another is named
        key = (config.model, config.device, config.dtype, config.scheduler or "", *config.loras)
        if self._model is None or config.loras or key != self._key:
            self._model, self._key = load_model(config), key
        return self._model
