"""Regular expressions for the headings and field labels of pathology reports."""

import re
from collections.abc import Mapping

from clipit.reports.foreign_headings import foreign_patterns

UNKNOWN = "unknown"
"""Section of text before the first heading."""

_DESCRIPTION = r"(?:descrip\w{1,6}|examina\w{1,6}|findings?|appearance|diagnosis|summary)"  # OCR: "descripkon"

# Unambiguous: headings even without a colon, if in capitals, in title case or alone on a line.
_STRONG: dict[str, str] = {
    "clinical": r"clinical\s+(?:history|information|data|diagnos[ie]s(?:\s*[/&]?\s*history)?|notes?|impression|"
    r"summary|details|indications?)|(?:pre|post)-?\s?op(?:erative)?\s+diagnosis?|operative\s+(?:diagnosis|findings)|"
    r"(?:past\s+|relevant\s+)?(?:medical|patient|surgical)\s+history",
    "intraoperative": r"intra-?\s?operative\s+(?:consultation|diagnosis|findings)|"
    r"frozen\s+section\s+(?:diagnosis|consultation|report|interpretation)",
    "gross": rf"(?:gross|macroscopic(?:al)?)\s+(?:and\s+micro\w+\s+)?(?!diagnosis){_DESCRIPTION}",
    "microscopic": rf"(?:microscopic(?:al)?|histolog(?:ic|ical|y))\s+{_DESCRIPTION}",
    "diagnosis": r"(?:(?:final|main|principal|anatomic|pathology|pathologic(?:al)?|surgical|"
    r"histopatholog(?:y|ic|ical)|cytologic)\s+){1,3}diagnos[ie]s",
    "synoptic": r"synoptic\s+(?:report|data|summary)|(?:cancer\s+)?case\s+(?:summary|synopsis)|"
    r"(?:(?:large|small)\s+intestine\s+)?(?:tissue|cancer|specimen|tumou?r)\s+(?:checklist|synopsis)|"
    r"(?:pathologic(?:al)?\s+)?(?:tnm\s+|tumou?r\s+)staging\s+(?:summary|information)",
    "stage": r"(?:ajcc\s+)?patholog(?:y|ic|ical)\s+(?:tnm\s+|tumou?r\s+)?stag(?:e|ing)|"
    r"tumou?r\s+(?:stag(?:e|ing)|classification)|stage\s+of\s+tumou?r",
    "specimen": r"specimens?(?:\(s\))?\s+(?:submitted|received|information|source)|source\s+of\s+specimen|"
    r"tissues?\s+submitted|material\s+submitted",
    "blocks": r"block\s+(?:summary|key|designation)|summary\s+of\s+sections|"
    r"(?:section|cassette|slide)\s+(?:code|key|summary)s?",
    "ancillary": r"ancillary\s+(?:studies|tests|procedures)|special\s+(?:stains|studies)|"
    r"molecular\s+(?:studies|results|pathology)|immunohistochem\w+\s+(?:results|stains|studies|findings)",
    "addendum": r"addendum\s+(?:report|comments?|diagnosis|discussion|text)",
    "administrative": r"(?:physician|unit)\s+in\s+charge|material\s+(?:collected|received)\s+on|"
    r"expected\s+\w+\s+of\s+examina\w+|examina\w+\s+performed\s+on|examina\w+\s+no|compliance\s+validated\s+by|"
    r"contact\s+your\s+doctor\s+with\s+this\s+report|electronically\s+signed(?:\s+out)?(?:\s+by)?|"
    r"run\s+(?:date|time|user)|sample\s+id|internal\s+invoice\s+no|uuid(?=\s*:)|"
    r"date\s+of\s+(?:birth|procurement)|(?:(?:formatted\s+)?path|surgical\s+pathology)\s+report",
}  # fmt: skip

# Common words: headings only with a colon or alone on a line.
_WEAK: dict[str, str] = {
    "clinical": r"history|indications?|clinical|remarks",
    "gross": r"gross|macroscop(?:y|ic)",
    "microscopic": r"microscop(?:y|ic)",
    "diagnosis": r"diagnos[ie]s(?:\s+diagnoses)?|impression|interpretation|conclusions?",
    "comment": r"(?:diagnostic\s+|pathologist(?:'?s)?\s+|additional\s+)?comments?|notes?|remark",
    "specimen": r"specimens?(?:\(s\))?|materials?|procedures?",
    "ancillary": r"immunohistochem\w+",
    "addendum": r"addend(?:um|a)(?:\s*(?:no\.?\s*|#\s*)?\d{1,2})?(?:\s*\([^()\n]{1,30}\))?",
    "stage": r"(?:p?tnm\s+)?stag(?:e|ing)|p?tnm",
    "administrative": r"pa\w{1,2}ent|gender|age|dob|mrn|accession|pesel|date|redacted|disclaimer|"
    r"examina\w{1,6}(?:\s+no\.)?",
}

_FIELD = (
    r"(?:(?:specimen|tumou?r|polyp)\s+(?:type|site|size|features|extent|extension|location|configuration|focality|"
    r"integrity|length|dimensions?|budding|grade|deposits)|histolog(?:ic|ical)\s+(?:type|grade|pattern)|histology|grade|"
    r"(?:(?:lympho-?\s?vascular|lymph-?\s?vascular|angiolymphatic|perineural|vascular|venous|lymphatic|large\s+venous|"
    r"small\s+vessel|capsular|seminal\s+vesicle)\s+invasion)|(?:depth|extent)\s+of\s+invasion|"
    r"(?:(?:surgical|proximal|distal|radial|mesenteric|circumferential|deep|lateral|peripheral|resection)\s+){0,8}margins?"
    r"(?:\s+status)?|(?:number\s+of\s+)?(?:regional\s+|attached\s+)?lymph\s+nodes?|distance\s+(?:to|from|of)\s+(?:[a-z]+\s+){1,5}margins?|level\s+of\s+penetration|"
    r"increased\s+tumou?r\s+infiltrating\s+lymphocytes|distant\s+metastas[ie]s|primary\s+tumou?r|"
    r"(?:additional|other)\s+(?:pathologic(?:al)?\s+)?findings|treatment\s+effect|host\s+response|growth\s+pattern|"
    r"evidence\s+of\s+[a-z-]+\s+treatment|(?:extraprostatic|microscopic\s+tumou?r|local)\s+extension|"
    r"gross\s+(?:configuration|tumou?r\s+perforation|appearance\s+of\s+tumou?r)|serosal\s+involvement|"
    r"pre-?existing\s+polyp|polyps?\s+away|non-?\s?neoplastic\s+bowel|mucinous|signet\s+ring\s+feature|necrosis)"
)


def _alternatives(english: Mapping[str, str], others: Mapping[str, str]) -> str:
    """Return one group per section, with English headings before those of other languages."""
    patterns = {
        name: "|".join(headings[name] for headings in (english, others) if name in headings) for name in english
    }
    return "|".join(f"(?P<{name}>{pattern})" for name, pattern in patterns.items())


_LETTER = "A-Za-z0-9\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u00ff"
_START = rf"(?<![{_LETTER}])(?=[A-Z\u00c0-\u00d6\u00d8-\u00de]|pTNM)"

STRONG = re.compile(
    rf"{_START}(?i:{_alternatives(_STRONG, foreign_patterns(several_words=True))})(?![{_LETTER}])(?P<colon>\s*:)?"
)
"""A heading anywhere in the text; if it has no colon, the caller must check its capitals and position."""

WEAK = re.compile(
    rf"{_START}(?i:{_alternatives(_WEAK, foreign_patterns(several_words=False))})(?![{_LETTER}])"
    r"(?P<colon>\s*:|(?=[\s.;,-]*$)|(?<=[A-Z]{4})(?=\s+[A-Z][a-z.]))"
)
"""A one-word heading with a colon, at the end of its line, or in capitals before text in lower case."""

_GLUED = r"(?:(?<=[a-z]{3})|(?<=\d))(?=[A-Z][a-z]{3,}(?: [a-z-]+){0,4}:)"  # "colonTumor size: 3 cm"

FIELD = re.compile(rf"(?<![A-Z0-9-])(?=[A-Z])(?i:{_FIELD})(?i:\s+[a-z()/]+)?\s*:|{_GLUED}")
"""Start of a labelled field of a form, even if OCR has dropped the space before it."""

RECEIVED = re.compile(
    r"(?:\(?[A-Z0-9]{1,2}[.):]\s*)*(?:(?:the\s+|this\s+)?specimens?\s+(?:is|are|was|were|consists?)\b|"
    r"(?:specimens?\s+)?received\s+(?:fresh|in|unfixed|labell?ed|is|are|and)\b)",
    re.I,
)
"""Start of a sentence that opens a gross description whose heading is missing or unreadable."""

MENTION = re.compile(r"(?i:\b(?:see|the|above|below|this|in|of|and|for|per|no|following|with|under)\s+)$|\($")
"""Words before a heading that turn it into a mention: "see comment"."""

ONE_SENTENCE_SECTIONS = frozenset({"stage", "administrative"})
"""Sections that end after one sentence; the following text belongs to the preceding section again."""

SECTIONS = tuple(sorted({*_STRONG, *_WEAK, UNKNOWN}))
"""Every section name that a snippet can have."""
