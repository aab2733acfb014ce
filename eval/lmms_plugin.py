"""What lmms-eval finds by the entry point `lmms_eval.models`: that there is a model "foveate"."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """The registration; the class is imported when it is asked for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="foveate", chat_class_path="eval.lmms.Foveate")
