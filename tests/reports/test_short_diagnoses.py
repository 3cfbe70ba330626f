from collections.abc import Sequence

import numpy as np
import pytest

from clipit.config.run import ReportsConfig
from clipit.reports.filters import filter_snippets, is_short_diagnosis


@pytest.mark.parametrize(
    "text",
    [
        "Adenocarcinoma.",
        "DIAGNOSIS: Adenocarcinoma.",
        "partially mucinous colorectal adenocarcinoma,",
        "Histologic type: Mucinous adenocarcinoma.",
        "Adenocarcinoma tubulopapillare partim mucinosum coli.",
        "There is also a chronic appendicitis.",
        "A. Colon, sigmoid, segmental resection: Adenocarcinoma, moderately differentiated.",
        "High-grade prostatic intraepithelial neoplasia.",
    ],
)
def test_short_diagnoses_are_recognised(text: str) -> None:
    assert is_short_diagnosis(text)


@pytest.mark.parametrize(
    "text",
    [
        "Margins negative for carcinoma in all sections.",
        "No evidence of adenocarcinoma is seen.",
        "URETERAL TISSUE, NO CARCINOMA SEEN",
        "Number of nodes involved by metastasis: 0",
        "High-grade prostatic intraepithelial neoplasia (HGPIN): None.",
        "Cannot exclude a well differentiated carcinoma.",
        "Ten benign lymph nodes (0/10) were found.",
        "PROPORTION OF PROSTATE INVOLVED BY CARCINOMA: 30-40%",
        "The wall was cut into four thin pieces.",
        "The tumor is a moderately differentiated adenocarcinoma that invades the muscularis propria.",
        "Procedures and histologic type of the carcinoma:",
    ],
)
def test_other_statements_are_not_short_diagnoses(text: str) -> None:
    assert not is_short_diagnosis(text)


def test_prompt_filter_keeps_short_diagnoses_outside_the_clinical_history() -> None:
    mucinous, negative = "Partially mucinous colorectal adenocarcinoma.", "Margins are negative for carcinoma."
    history = "Previously resected mucinous adenocarcinoma."
    sections = {mucinous: {"diagnosis"}, negative: {"diagnosis"}, history: {"clinical"}}

    def nearer_to_boilerplate(texts: Sequence[str]) -> np.ndarray:
        return np.full(len(texts), -1.0)

    config = ReportsConfig(path="reports.txt")
    kept, dropped, short = filter_snippets(sections, config, nearer_to_boilerplate)
    assert kept == [mucinous] and short is not None and short.examples == [mucinous]
    assert sum(tally.count for tally in dropped.values()) == 2
    custom = ReportsConfig(path="reports.txt", morphology_prompts="mine.yaml")
    assert filter_snippets(sections, custom, nearer_to_boilerplate)[0] == [], "custom prompts may drop longer diagnoses"
