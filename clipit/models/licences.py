"""Licences of the models behind a classifier, and whether they permit sharing it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from clipit.models.backbone_specs import BACKBONES
from clipit.models.classifier_spec import ClassifierSpec
from clipit.models.loading import public_name
from clipit.models.specs import ModelSpec
from clipit.models.vlm_specs import VLMS

OTHER = "other"
_IDENTIFIERS = {"Apache-2.0": "apache-2.0", "MIT": "mit", "CC-BY-NC-ND-4.0": "cc-by-nc-nd-4.0"}
"""Hugging Face's identifiers for the licences in the model tables, keyed by clipit's names."""
_UNKNOWN = "unknown"


@dataclass(frozen=True)
class ModelLicence:
    """Licence of a classifier's backbone, or of a VLM that it was trained with.

    Attributes:
        role: `backbone`, whose adapted weights the classifier contains, or `VLM`, which provided its pairs or targets.
        model: Name of the model, without local paths.
        licence: Licence in clipit's model tables; `unknown` for other models.
        page: Page of the model; "" if unknown.
        source: Hugging Face repository of the model; "" if unknown.
        gated: Whether access to the model must be requested.
    """

    role: Literal["backbone", "VLM"]
    model: str
    licence: str = _UNKNOWN
    page: str = ""
    source: str = ""
    gated: bool = False

    @property
    def identifier(self) -> str:
        """Identifier for the `license` field of a card; `other` if the licence has no identifier."""
        return _IDENTIFIERS.get(self.licence, OTHER)

    @property
    def known(self) -> bool:
        """Whether the model tables state a licence."""
        return self.licence != _UNKNOWN

    @property
    def forbids_derivatives(self) -> bool:
        """Whether the licence forbids sharing modified copies of the weights."""
        return "-ND" in self.licence.upper()

    @property
    def objection(self) -> str:
        """Reason why the classifier may not be shared, as a verb phrase; "" if there is none."""
        if self.forbids_derivatives:
            return "forbids sharing derivatives"
        if self.gated and self.identifier == OTHER:
            return "is not known to permit sharing, and access to the model must be requested"
        return ""


def model_licences(spec: ClassifierSpec) -> list[ModelLicence]:
    """Look up the licences of a classifier's backbone (first) and of the VLMs that it was trained with."""
    backbone = str(spec.provenance.get("backbone", {}).get("name", _UNKNOWN))
    teachers = spec.provenance.get("vlms")
    if not isinstance(teachers, list):  # classifiers from earlier versions do not list them
        teachers = [spec.vlm["name"]] if spec.vlm else []
    return [
        _look_up("backbone", backbone, BACKBONES),
        *(_look_up("VLM", str(name), VLMS) for name in dict.fromkeys(teachers)),
    ]


def vlm_licence(name: str) -> ModelLicence:
    """Look up the licence of a VLM by its configured name."""
    return _look_up("VLM", public_name(name), VLMS)


def _look_up(role: Literal["backbone", "VLM"], name: str, table: Mapping[str, ModelSpec]) -> ModelLicence:
    if name == "embedded":
        return ModelLicence(role, "embedded (part of clipit)", "Apache-2.0")
    hub_id = name.rpartition(":")[2].partition("@")[0]
    by_source = {entry.source.lower(): entry for entry in table.values()}
    entry = table.get(name) or by_source.get(hub_id.lower())
    if entry is not None:
        source = entry.source if "/" in entry.source else ""
        if role == "backbone" and not source:
            source = f"timm/{entry.source}"
        return ModelLicence(role, entry.name, entry.licence, entry.page, source, entry.gated)
    if re.search("(^|[:/])local ", name):  # see clipit.models.loading.public_name
        return ModelLicence(role, "a local model")
    published = "/" in hub_id and not name.startswith("open_clip:")
    return ModelLicence(role, name, source=hub_id if published else "")
