"""Check a loaded classifier against its description: preprocessing, input size, features and classes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from clipit.errors import ModelError, is_out_of_memory, out_of_memory
from clipit.models.classifier_network import ClassifierNetwork
from clipit.models.classifier_spec import CONFIG, COPY_AGAIN, DESCRIPTION, ClassifierSpec
from clipit.models.loading import read_model_json
from clipit.models.preprocess import Preprocess, preprocess_from_timm, preprocess_from_transformers
from clipit.models.transformers_backbones import PROCESSOR


def check_timm_preprocess(folder: Path, spec: ClassifierSpec, model: Any) -> None:
    """Check that timm's configuration of the loaded model sets the same preprocessing as `clipit.json`.

    Raises:
        ModelError: The two differ.
    """
    from timm.data import resolve_data_config

    data = resolve_data_config({}, pretrained_cfg=model.pretrained_cfg)
    _compare(folder, spec, preprocess_from_timm(data, str(folder / CONFIG)), CONFIG)


def check_transformers_preprocess(folder: Path, spec: ClassifierSpec) -> None:
    """Check that transformers' preprocessor file sets the same preprocessing as `clipit.json`.

    Raises:
        ModelError: The two differ, or the file cannot be read.
    """
    values = read_model_json(folder / PROCESSOR)
    _compare(folder, spec, preprocess_from_transformers(values, str(folder / PROCESSOR)), PROCESSOR)


def _compare(folder: Path, spec: ClassifierSpec, stored: Preprocess, name: str) -> None:
    stored = replace(stored, odd_margin=spec.preprocess.odd_margin)  # these files do not contain it
    if stored != spec.preprocess:
        raise ModelError(
            f"the preprocessing is {spec.preprocess.describe()} in {DESCRIPTION}, but {stored.describe()} in {name}",
            where=folder,
            fix=COPY_AGAIN,
        )


def check_network(spec: ClassifierSpec, network: ClassifierNetwork, folder: Path) -> None:
    """Run a network once, on a blank image, and compare its output with the description.

    Raises:
        ModelError: The network rejects images of this size, or has a different number of features or classes.
    """
    size = spec.preprocess.size
    try:
        features = network.backbone.get_classifier().in_features if spec.plain else spec.dim
        with torch.inference_mode():
            outputs = tuple(network(torch.zeros(1, 3, size, size))[0].shape)
    except Exception as error:  # model families raise different exceptions
        if is_out_of_memory(error):
            raise out_of_memory(error) from error
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(
            f"contrary to {DESCRIPTION}, the backbone does not map images of {size} x {size} pixels to {spec.dim} "
            f"features: {reason}",
            where=folder,
            fix=COPY_AGAIN,
        ) from error
    if (features, outputs) != (spec.dim, (1, len(spec.classes))):
        raise ModelError(
            f"the network has {features} features and {outputs[-1]} classes, but {DESCRIPTION} states {spec.dim} and "
            f"{len(spec.classes)}",
            where=folder,
            fix=COPY_AGAIN,
        )
