"""The entry point `lmms_eval.models`, which registers the model "foveate" with lmms-eval."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """The registration. The class is imported when it is used."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="foveate", chat_class_path="eval.lmms.Foveate")
