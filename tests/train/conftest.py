"""Runs in one process are short; most of their time would go into garbage collection."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import deepspeed  # noqa: F401
import peft  # noqa: F401
import pytest
import torch.utils.tensorboard  # noqa: F401

import train.run  # noqa: F401


@pytest.fixture(autouse=True, scope="session")
def frozen_imports() -> Iterator[None]:
    """Each run ends in a full collection (accelerate's), which walks all that was imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
