"""Headings of German, French, Spanish, Italian and Dutch pathology reports."""

import re
import unicodedata

_HEADINGS: dict[str, tuple[str, ...]] = {
    "clinical": (
        "klinische angaben", "klinische diagnose", "klinische daten", "klinische fragestellung",
        "klinische information", "klinische informationen", "klinik", "anamnese", "fragestellung", "vorgeschichte",
        "renseignements cliniques", "informations cliniques", "données cliniques", "contexte clinique",
        "histoire clinique", "antécédents",
        "datos clínicos", "historia clínica", "información clínica", "resumen clínico", "diagnóstico clínico",
        "antecedentes",
        "notizie cliniche", "dati clinici", "informazioni cliniche", "quesito clinico", "quesito diagnostico",
        "diagnosi clinica", "anamnesi",
        "klinische gegevens", "klinische informatie", "klinische vraagstelling", "vraagstelling", "voorgeschiedenis",
    ),
    "intraoperative": (
        "intraoperativer schnellschnitt", "schnellschnitt", "schnellschnittdiagnose", "schnellschnittuntersuchung",
        "examen extemporané",
        "estudio intraoperatorio", "biopsia intraoperatoria", "diagnóstico intraoperatorio",
        "esame intraoperatorio", "esame estemporaneo",
        "vriescoupe", "vriescoupeonderzoek",
    ),
    "gross": (
        "makroskopischer befund", "makroskopische beschreibung", "makroskopische beurteilung", "makroskopie",
        "examen macroscopique", "description macroscopique", "étude macroscopique", "macroscopie",
        "descripción macroscópica", "examen macroscópico", "estudio macroscópico", "macroscopía",
        "descrizione macroscopica", "esame macroscopico", "reperto macroscopico", "macroscopia",
        "macroscopisch onderzoek", "macroscopische beschrijving",
    ),
    "microscopic": (
        "mikroskopischer befund", "mikroskopische beschreibung", "mikroskopische beurteilung",
        "histologischer befund", "histologische beschreibung", "mikroskopie", "histologie",
        "examen microscopique", "examen histologique", "description microscopique", "étude microscopique",
        "étude histologique", "microscopie",
        "descripción microscópica", "examen microscópico", "estudio microscópico", "estudio histológico",
        "microscopía", "histología",
        "descrizione microscopica", "esame microscopico", "esame istologico", "reperto microscopico",
        "microscopia", "istologia",
        "microscopisch onderzoek", "microscopische beschrijving", "histologisch onderzoek",
    ),
    "diagnosis": (
        "histologische diagnose", "pathologisch-anatomische diagnose", "pathohistologische diagnose",
        "kritische beurteilung", "zusammenfassende beurteilung", "diagnose", "diagnosen", "beurteilung",
        "diagnostic final", "diagnostic histologique", "diagnostic anatomopathologique",
        "diagnostic anatomo-pathologique", "diagnostic",
        "diagnóstico anatomopatológico", "diagnóstico histológico", "diagnóstico histopatológico",
        "diagnóstico final", "juicio diagnóstico", "diagnóstico", "diagnósticos", "conclusión", "conclusiones",
        "diagnosi istologica", "diagnosi istopatologica", "diagnosi anatomo-patologica", "diagnosi finale",
        "diagnosi", "conclusioni", "conclusione",
        "conclusie", "conclusies",
    ),
    "comment": (
        "kommentar", "anmerkung", "anmerkungen", "bemerkung", "bemerkungen", "epikrise",
        "commentaire", "commentaires", "remarque", "remarques",
        "comentario", "comentarios", "nota", "notas", "observaciones",
        "commento",
        "opmerking", "opmerkingen", "toelichting", "commentaar",
    ),
    "specimen": (
        "eingesandtes material", "untersuchungsmaterial", "entnahmestelle",
        "nature du prélèvement", "nature des prélèvements", "prélèvement", "prélèvements", "matériel",
        "material remitido", "tipo de muestra", "muestra", "muestras", "espécimen", "procedimiento",
        "materiale inviato", "natura del materiale", "sede del prelievo", "materiale", "campione", "campioni",
        "aard materiaal", "aard van het materiaal", "ingezonden materiaal", "materiaal",
    ),
    "ancillary": (
        "immunhistochemie", "immunhistologie", "sonderfärbungen", "spezialfärbungen", "zusatzuntersuchungen",
        "molekularpathologie",
        "étude immunohistochimique", "examen immunohistochimique", "colorations spéciales",
        "techniques complémentaires", "biologie moléculaire", "immunohistochimie",
        "estudio inmunohistoquímico", "técnicas especiales", "tinciones especiales", "estudio molecular",
        "inmunohistoquímica",
        "indagini immunoistochimiche", "colorazioni speciali", "indagini molecolari", "biologia molecolare",
        "immunoistochimica",
        "moleculaire diagnostiek", "aanvullend onderzoek", "immuunhistochemie",
    ),
    "addendum": (
        "nachtrag", "nachbericht", "ergänzungsbefund", "zusatzbefund",
        "compte rendu complémentaire", "complément",
        "informe complementario", "informe adicional", "adenda",
        "referto integrativo", "integrazione",
        "aanvullend verslag", "aanvulling",
    ),
    "stage": (
        "ptnm-klassifikation", "tnm-klassifikation", "tumorklassifikation", "tumorstadium",
        "classification ptnm", "classification tnm", "clasificación tnm", "estadio ptnm",
        "classificazione tnm", "stadiazione", "stadiazione ptnm",
        "tnm-classificatie",
    ),
    "administrative": (
        "geburtsdatum", "eingangsdatum", "befundnummer", "eingangsnummer", "einsender",
        "date de naissance", "médecin préleveur", "prescripteur",
        "fecha de nacimiento", "fecha", "paciente", "edad", "sexo",
        "data di nascita", "paziente", "età", "sesso",
        "geboortedatum", "geslacht", "patiënt",
    ),
}  # fmt: skip
"""Section -> headings, in lower case with accents."""


def _pattern(heading: str) -> str:
    """Return a regular expression that matches a heading with its accents or, as OCR may read it, without them."""
    letters = []
    for char in heading:
        plain = unicodedata.normalize("NFD", char)[0]
        letters.append(r"\s+" if char == " " else re.escape(char) if plain == char else f"[{char}{plain}]")
    return "".join(letters)


def foreign_patterns(*, several_words: bool) -> dict[str, str]:
    """Return an alternation of the headings of each section.

    Args:
        several_words: Whether to return headings of several words; False for headings of one word.
    """
    chosen = {
        section: [heading for heading in headings if (" " in heading) == several_words]
        for section, headings in _HEADINGS.items()
    }
    return {section: "|".join(map(_pattern, headings)) for section, headings in chosen.items() if headings}
