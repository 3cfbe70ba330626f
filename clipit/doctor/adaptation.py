"""Check the section `adapt` of a configuration: training texts, additional test sets, and the VLM's licence."""

from pathlib import Path

from clipit.config.run import RunConfig
from clipit.config.vlm_training import AdaptConfig
from clipit.doctor.checks import Check, failed_check
from clipit.doctor.data import is_unwritten
from clipit.errors import ClipitError
from clipit.models.licences import vlm_licence
from clipit.studies.adapted_vlms.further_sets import read_further_sets

_SUBJECT = "adaptation"


def check_adaptation(config: RunConfig, section: AdaptConfig) -> list[Check]:
    """Check that the training texts and the sets of `adapt.forgetting` exist; no checks without a section `adapt`.

    Args:
        section: Section `adapt`.
    """
    if section == AdaptConfig():
        return []
    checks = [*_check_texts(config, section)]
    try:
        read_further_sets(config, section)
    except ClipitError as error:
        checks.append(failed_check(_SUBJECT, error))
    licence = vlm_licence(config.vlm.name)
    if licence.forbids_derivatives:
        message = (
            f"The licence of {licence.model} ({licence.licence}) forbids derivatives, so only an adapter is written."
        )
        checks.append(
            Check("WARN", _SUBJECT, message, "use it with vlm.adapter, and do not share it without permission")
        )
    return checks or [Check("PASS", _SUBJECT, f"{section.data}, arms {', '.join(section.arms)}")]


def _check_texts(config: RunConfig, section: AdaptConfig) -> list[Check]:
    path = section.pairs.path
    if section.data == "pairs":
        plain = path is not None and not any(sign in path for sign in "*?{[") and not is_unwritten(path)
        if plain and path is not None and not Path(path).expanduser().exists():
            return [Check("FAIL", _SUBJECT, f"adapt.pairs.path {path} does not exist.", "correct adapt.pairs.path")]
        return []
    if config.reports is None and section.needs_reports:
        message = f"adapt.data: {section.data} needs reports, but none are configured."
        return [Check("FAIL", _SUBJECT, message, "set reports.path, or use adapt.data: pairs")]
    if section.data == "cases" and config.reports is not None and config.reports.group_column is None:
        message = "adapt.data: cases needs the patient of each report."
        return [Check("WARN", _SUBJECT, message, "set reports.group_column, unless the reports have TCGA barcodes")]
    return []
