"""Section headings of reports in languages other than English."""

import pytest

from clipit.reports.cleaning import clean_text
from clipit.reports.garbage import is_bare_heading
from clipit.reports.sentences import split_sentences

REPORTS = {
    "German": "Klinische Angaben: Verdacht auf ein Karzinom.\nMakroskopie: Ein braunes Präparat von 3 cm.\n"
    "Mikroskopischer Befund: Drüsen infiltrieren die Muskularis.\nBeurteilung: Mäßig differenziertes Adenokarzinom.",
    "French": "RENSEIGNEMENTS CLINIQUES\nPolype du côlon droit.\nÉTUDE MACROSCOPIQUE\nUne pièce de 4 cm.\n"
    "Examen histologique : Prolifération de glandes atypiques.\nCONCLUSION\nAdénocarcinome bien différencié.",
    "Spanish": "Datos clínicos: Pólipo de colon derecho.\nDescripción macroscópica: Fragmento de 2 cm.\n"
    "Descripción microscópica: Glándulas atípicas que infiltran.\nDiagnóstico: Adenocarcinoma bien diferenciado.",
    "Italian": "Notizie cliniche: Polipo del colon destro.\nDescrizione macroscopica: Frammento di 1 cm.\n"
    "Esame microscopico: Ghiandole con displasia lieve.\nDiagnosi: Adenoma tubulare del colon.",
    "Dutch": "Klinische gegevens: Poliep in het colon.\nMacroscopie: Een biopt van 3 mm.\n"
    "Microscopie: Slijmvlies met dysplastische klieren.\nConclusie: Tubulair adenoom van het colon.",
}


def sections(text: str) -> list[str]:
    return list(dict.fromkeys(section for section, _ in split_sentences(clean_text(text))))


@pytest.mark.parametrize("language", REPORTS)
def test_sections(language: str) -> None:
    assert sections(REPORTS[language]) == ["clinical", "gross", "microscopic", "diagnosis"]


def test_headings_in_capitals_without_accents_or_colon() -> None:
    assert sections("DESCRIPCION MACROSCOPICA Fragmento de 2 cm.\nDIAGNOSTICO\nAdenoma tubular.") == [
        "gross",
        "diagnosis",
    ]
    assert is_bare_heading("Étude macroscopique") and is_bare_heading("Beurteilung:")


@pytest.mark.parametrize(
    "text",
    ["Die makroskopische Beurteilung war erschwert.", "La conclusion est réservée.", "Il materiale è scarso oggi."],
)
def test_the_same_words_in_a_sentence_are_not_headings(text: str) -> None:
    assert split_sentences(clean_text(text)) == [("unknown", text)]


def test_english_headings_that_contain_a_foreign_heading() -> None:
    text = "PRE-OP DIAGNOSI: Carcinoma of the colon\nDiagnostic comment: Seen by two pathologists."
    assert sections(text) == ["clinical", "comment"]
