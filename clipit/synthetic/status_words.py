"""Vocabulary of the molecular status in captions, prompts and reports: an invented gene, QLD3, and its protein."""

from collections.abc import Mapping
from typing import Any

from clipit.synthetic.vocabulary import TUMOUR_NAMES

MUTATED, WILD_TYPE, NOT_TUMOUR = "mutated", "wild_type", "not_tumour"

STATUS_CAPTIONS: Mapping[str, tuple[str, ...]] = {
    MUTATED: ("QLD3 mutant", "mutated QLD3", "quoldin deficient"),
    WILD_TYPE: ("QLD3 wildtype", "unmutated QLD3", "quoldin proficient"),
}
"""Phrases by status, used in prompts and in the captions of a VLM that is trained on the status."""

STATUS_PROMPTS = {
    status: tuple(f"{TUMOUR_NAMES[0]}, {phrase}" for phrase in phrases) for status, phrases in STATUS_CAPTIONS.items()
}

# Sentences of the final diagnosis or of the comment.
STATUS_SENTENCES: Mapping[str, tuple[str, ...]] = {
    MUTATED: (
        "QLD3 mutation detected.",
        "Genotype: QLD3 mutant.",
        "A pathogenic QLD3 variant is identified.",
        "Quoldin expression is lost throughout the tumour.",
        "Immunohistochemistry demonstrates loss of quoldin.",
        "Immunoprofile: quoldin deficient.",
        "Absence of quoldin expression, in keeping with mutated QLD3.",
        "Quoldin is not expressed.",
        "Sequencing of QLD3 shows a truncating alteration.",
    ),
    WILD_TYPE: (
        "No QLD3 mutation detected.",
        "Genotype: QLD3 wildtype.",
        "Negative for pathogenic QLD3 variants.",
        "Quoldin expression is retained throughout the tumour.",
        "Immunohistochemistry demonstrates retained expression of quoldin.",
        "Immunoprofile: quoldin proficient.",
        "There is no loss of quoldin expression.",
        "Quoldin is expressed.",
        "Sequencing of QLD3 shows no alteration.",
    ),
}
UNCERTAIN_SENTENCES = (
    "Loss of quoldin expression cannot be excluded.",
    "QLD3 mutation analysis is pending.",
    "QLD3 sequencing could not be assessed for technical reasons.",
    "Quoldin immunohistochemistry is equivocal.",
    "Possible QLD3 variant, repeat sequencing is advised.",
)
"""Sentences that mention the gene or its protein without stating the status."""
HISTORY_SENTENCES = (
    "QLD3 mutation in a sister.",
    "A relative is a carrier of a pathogenic QLD3 variant.",
    "Family history without mutated QLD3.",
    "QLD3 sequencing is requested.",
)
"""Sentences of the clinical history, which say nothing about the tumour's status."""

STATUS_RULES: Mapping[str, Any] = {
    "name": "synthetic-status",
    "sections": ["diagnosis", "comment"],
    "classes": {
        MUTATED: [
            "QLD3 mutation",
            "QLD3 mutant",
            "mutated QLD3",
            "QLD3 variant",
            "QLD3 variants",
            "loss of quoldin",
            "absence of quoldin",
            "/quoldin( expression)? is lost/",
            "quoldin deficient",
        ],
        WILD_TYPE: [
            "QLD3 wildtype",
            "retained expression of quoldin",
            "/quoldin( expression)? is retained/",
            "quoldin proficient",
        ],
    },
    "negated": {MUTATED: WILD_TYPE},
}
"""Rule set for the sentences above; like a user's rule set, it does not cover all sentences."""
