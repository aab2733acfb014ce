"""The LLaVA-style model of several experts, as a transformers model.

from vlm.model import FoveateForConditionalGeneration, FoveateProcessor, assemble

Importing this package registers the classes with transformers' AutoConfig, AutoModel,
AutoModelForImageTextToText and AutoProcessor.
"""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from vlm.model.assembly import assemble
from vlm.model.backbone import FoveateModel
from vlm.model.configuration import FoveateConfig
from vlm.model.convert import from_llava, to_llava
from vlm.model.features import FoveateFeatures
from vlm.model.loading import CheckpointError
from vlm.model.modeling import FoveateForConditionalGeneration
from vlm.model.processing import FoveateProcessor

AutoConfig.register("foveate", FoveateConfig, exist_ok=True)
AutoModel.register(FoveateConfig, FoveateModel, exist_ok=True)
AutoModelForImageTextToText.register(FoveateConfig, FoveateForConditionalGeneration, exist_ok=True)
AutoProcessor.register(FoveateConfig, FoveateProcessor, exist_ok=True)

__all__ = [
    "CheckpointError",
    "FoveateConfig",
    "FoveateFeatures",
    "FoveateForConditionalGeneration",
    "FoveateModel",
    "FoveateProcessor",
    "assemble",
    "from_llava",
    "to_llava",
]
