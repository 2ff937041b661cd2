"""What every type of the census imports and looks up at first, done once in the process that forks theirs."""

import os

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import torch
import transformers
from transformers import AutoModel, PreTrainedModel  # noqa: F401

import onnxport.build.stages
import onnxport.export.hugging_face.any_decoder
import onnxport.export.routes.attention_interface
import onnxport.export.routes.direct_encoder
import onnxport.runtime.decode.state  # noqa: F401

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.onnx.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),), dynamo=True, verbose=False)
