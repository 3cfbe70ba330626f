"""Vocabulary of the synthetic worlds: names, phrases, templates and boilerplate, in pools for captions and reports."""

from clipit.synthetic.latents import CLASSES

# Names of each class: SHARED_NAMES occur in the VLM's captions and in reports, HELD_OUT_NAMES only in reports.
SHARED_NAMES: dict[str, tuple[str, ...]] = dict(
    zip(
        CLASSES,
        (
            ("adipose tissue", "mature fat", "fatty tissue", "adipocytes", "a fat lobule"),
            (
                "lymphoid tissue",
                "a lymphoid aggregate",
                "sheets of lymphocytes",
                "a lymphoid follicle",
                "dense lymphocytes",
            ),
            ("a mucin pool", "extracellular mucin", "mucinous material", "a lake of mucus", "mucin"),
            (
                "fibrous stroma",
                "collagenous stroma",
                "connective tissue",
                "fibromuscular tissue",
                "spindle cell stroma",
            ),
            (
                "normal mucosa",
                "benign glandular mucosa",
                "unremarkable crypts",
                "regular benign glands",
                "healthy mucosa",
            ),
            (
                "low grade adenocarcinoma",
                "well differentiated adenocarcinoma",
                "low grade tumour",
                "gland forming carcinoma",
                "well differentiated tumour",
            ),
            (
                "high grade adenocarcinoma",
                "poorly differentiated adenocarcinoma",
                "high grade tumour",
                "solid carcinoma",
                "poorly differentiated tumour",
            ),
            ("necrosis", "necrotic debris", "necrotic tissue", "tumour necrosis", "dead tissue with debris"),
        ),
        strict=True,
    )
)
HELD_OUT_NAMES: dict[str, tuple[str, ...]] = dict(
    zip(
        CLASSES,
        (
            ("lipocytes in lobules of fat", "pericolic fat"),
            ("a lymphocyte rich nodule", "a nodal lymphoid infiltrate"),
            ("acellular mucin lakes", "pooled mucus"),
            ("desmoplastic connective tissue", "a sclerotic fibrous band"),
            ("glandular mucosa without dysplasia", "non neoplastic crypts"),
            (
                "grade 1 adenocarcinoma of gland forming type",
                "a well formed neoplastic gland proliferation of low grade",
            ),
            ("grade 3 carcinoma", "an undifferentiated solid tumour growth of high grade"),
            ("coagulative necrosis", "areas of dirty necrosis"),
        ),
        strict=True,
    )
)

TUMOUR_NAMES = ("tumour", "carcinoma", "adenocarcinoma", "malignant epithelium", "a neoplasm")
"""Tumour names that do not reveal the grade, for coarse captions and case reports."""
HELD_OUT_TUMOUR_NAMES = ("an epithelial malignancy", "neoplastic epithelium")
"""Additional tumour names that do not reveal the grade, only for reports."""
COARSE_NAMES = {**SHARED_NAMES, "tumour_low_grade": TUMOUR_NAMES, "tumour_high_grade": TUMOUR_NAMES}
"""Class names in captions that do not distinguish the grades."""

GRADE_NAMES = {
    "tumour_low_grade": ("low grade adenocarcinoma", "low grade tumour"),
    "tumour_high_grade": ("high grade adenocarcinoma", "high grade tumour"),
}
"""Names for prompts that state only the grade of a tumour, without glands or differentiation."""

# Phrases of each attribute by value; an empty tuple if the value is not mentioned.
SHARED_PHRASES: dict[str, tuple[tuple[str, ...], ...]] = {
    "infl": (
        ("absent inflammation", "no inflammatory cells"),
        ("scattered lymphocytes", "mild chronic inflammation", "a few inflammatory cells"),
        ("a brisk lymphocytic infiltrate", "marked inflammation", "many inflammatory cells"),
    ),
    "mucin": ((), ("focal mucin", "a little extracellular mucin"), ("abundant mucin", "prominent mucin pools")),
    "pleo": (
        ("uniform nuclei", "bland nuclei"),
        ("moderate nuclear pleomorphism", "moderately variable nuclei"),
        ("marked nuclear pleomorphism", "large bizarre nuclei"),
    ),
    "gland": (
        ("no gland formation", "solid growth"),
        ("focal gland formation", "occasional poorly formed glands"),
        ("well formed glands", "prominent gland formation"),
    ),
    "nec": ((), ("foci of necrosis", "necrotic areas")),
    "dens": (("low cellularity", "few cells"), (), ("high cellularity", "densely packed cells")),
}
HELD_OUT_PHRASES: dict[str, tuple[tuple[str, ...], ...]] = {
    "infl": (
        ("an absence of inflammation",),
        ("sparse lymphocytes in the background",),
        ("heavy infiltration by lymphocytes",),
    ),
    "mucin": ((), ("a small amount of mucus",), ("copious mucin",)),
    "pleo": (("nuclei of even size",), ("intermediate nuclear variation",), ("striking nuclear atypia",)),
    "gland": (("glands are lacking",), ("rare glands",), ("glands throughout",)),
    "nec": ((), ("patchy necrotic change",)),
    "dens": (("paucicellular areas",), (), ("crowded cells",)),
}

# {name}: a class name, {more}: one or two attribute phrases joined by "and".
CAPTION_NAMED = (
    "{name}",
    "an image of {name}",
    "a micrograph showing {name}",
    "{name} is seen",
    "there is {name}",
    "H&E tile of {name}",
)
CAPTION_FULL = (
    "{name} with {more}",
    "an image of {name} with {more}",
    "{name}, {more}",
    "there is {name} and {more}",
    "tile showing {name}, {more}",
    "a micrograph of {name}; {more}",
)
CAPTION_MORE = ("{more}", "an image with {more}", "there is {more}", "tile showing {more}")
REPORT_NAMED = (
    "Sections show {name}.",
    "Microscopic examination reveals {name}.",
    "The tissue consists of {name}.",
    "Also present is {name}.",
    "One fragment is composed of {name}.",
)
REPORT_FULL = (
    "Sections show {name} with {more}.",
    "Microscopically, {name} is identified with {more}.",
    "The specimen contains {name}, displaying {more}.",
    "Examination discloses {name} together with {more}.",
    "In other areas {name} is present, with {more}.",
    "The lesion is made up of {name}, {more}.",
)
REPORT_MORE = ("Elsewhere we note {more}.", "Additional findings include {more}.", "Focally, {more}.")
DIAGNOSES = ("{site}, {procedure}: {name}.", "{site}: {name}, see comment.", "{site}, {procedure}: {name} and {more}.")
"""Templates of the final diagnosis."""

# Sentences without information about the tissue; the pools of captions and reports are disjoint.
CAPTION_BOILERPLATE = (
    # request and history
    "the request form states change of bowel habit",
    "a patient of {n} years with abdominal pain",
    "the family doctor asks for an opinion on this man of {n}",
    "she has lost weight and is anaemic",
    "past history of surgery, no details",
    "a polyp was found by the endoscopist at {n} cm",
    "referred after a positive screening test",
    "known diabetes and hypertension",
    "clinical question: exclude malignancy",
    "previous biopsy number {n} is noted",
    # gross examination
    "specimen received in formalin and labelled with the name of the patient",
    "a fresh piece of bowel measuring {a} x {b} cm in total",
    "fixed overnight and opened along the long axis",
    "submitted in {n} cassettes, all embedded",
    "a segment of colon {n} cm long with attached fat",
    "the margin is inked black, the other end blue",
    "{n} lymph nodes were found in the fat and counted",
    "the outer surface is smooth and painted green",
    "a polypoid lesion, {a} cm across, was cut in half",
    "weight {n} g, colour grey",
    "representative slices are in blocks {b} to {n}",
    "three pieces of tissue, the largest {a} cm",
    "rectum and stomach were sent in separate pots",
    "tissue was taken for the research bank",
    # reporting and administration
    "report signed by the consultant pathologist",
    "the case was discussed with the surgeon by telephone",
    "clinical correlation is recommended",
    "blocks and slides were reviewed by two pathologists",
    "the attending doctor was informed of the result",
    "frozen section and final diagnosis agree",
    "special stains were done, the controls worked",
    "staged according to the TNM classification, edition {b}",
    "molecular tests have been ordered, an addendum follows",
    "imaging should be compared with these results",
    "coded for the cancer registry, number {n}",
    "to be presented at the tumour board meeting",
    "this examination was confirmed in consultation",
    "the materials were examined by the pathologist who signs",
    "date of receipt and date of report are on file",
    "see comment",
)
REPORT_CLINICAL = (
    "The patient is a {n} year old referred with altered bowel habit.",
    "History of anaemia and weight loss.",
    "Endoscopy showed a mass at {n} cm.",
    "Polyp found at screening colonoscopy.",
    "Previous surgery {b} years ago, details not supplied.",
)
REPORT_GROSS = (
    "Received fresh, labelled {site}, is a segment of bowel {n} cm in length.",
    "The specimen arrived in fixative and measures {a} x {b} x {a} cm.",
    "Serial slicing was performed and representative tissue is embedded in {n} blocks.",
    "The outer surface is painted and opened along its border.",
    "{n} lymph nodes were retrieved from the attached tissue.",
    "A polypoid piece of tissue, {a} cm across, is bisected and all embedded.",
)
REPORT_CLOSING = (
    "These results were communicated to Dr. {doctor} by telephone.",
    "Controls stained appropriately.",
    "Intraoperative consultation was confirmed.",
    "The attending pathologist has examined all materials.",
    "Staging follows the current edition; correlate with imaging.",
    "An addendum will follow when molecular studies are complete.",
    "Coded {n}{n} by the registry office.",
    "The case will be presented at the multidisciplinary meeting.",
)
DOCTORS = ("Adams", "Brook", "Carver", "Dunn", "Ellis")
ORGANS = ("colon", "rectum", "caecum", "stomach")
PROCEDURES = ("biopsy", "resection", "polypectomy", "excision")

# Names and templates of the prompt set; the VLM was trained on these names.
PROMPT_NAMES = {label: names[:3] for label, names in SHARED_NAMES.items()}
PROMPT_TEMPLATES = ("an image of {}.", "a histology picture showing {}.", "{}.")

# Prompts of the snippet filter: general terms, different from the sentences above.
MORPHOLOGY_BAG = (
    "fat cells",
    "lymphocytes and inflammation",
    "mucus and mucin",
    "collagen fibres and spindle cells",
    "benign glands of the mucosa",
    "carcinoma forming glands",
    "a solid tumour with atypical nuclei",
    "dead cells and debris",
    "pleomorphic nuclei",
    "cells and glands under the microscope",
)
BOILERPLATE_BAG = (
    "the specimen was received in formalin",
    "age, symptoms and history of the patient",
    "endoscopy and clinical question",
    "size in cm and weight",
    "number of blocks and cassettes",
    "the surface is inked and sliced",
    "lymph nodes were counted",
    "the report was signed by the pathologist",
    "discussed with the surgeon",
    "correlation with imaging is recommended",
    "special stains and controls",
    "staging and molecular tests",
)


# Vocabulary of the case corpus: diagnosis names with the grade, and another organ.

# Diagnosis lines for the tiles' organs. Only these name the grade.
GRADED_NAMES: dict[str, tuple[str, ...]] = {
    "low": (
        "low grade adenocarcinoma",
        "well differentiated adenocarcinoma",
        "low grade tumour",
        "well differentiated tumour",
        "grade 1 adenocarcinoma of gland forming type",
    ),
    "high": (
        "high grade adenocarcinoma",
        "poorly differentiated adenocarcinoma",
        "high grade tumour",
        "poorly differentiated tumour",
        "grade 3 carcinoma",
    ),
}
MUCINOUS_TYPE = "{name} of colloid type"
INFLAMMATORY_NAMES = (
    "active inflammation with ulceration",
    "an inflammatory process, negative for neoplasia",
    "long standing inflammation in an active phase",
)
NO_TUMOUR_NAMES = ("no evidence of malignancy", "negative for neoplasia", "within the limits of health")

# Another organ: tissues and findings that no tile shows, named with words that no caption or prompt contains.
OTHER_ORGAN = "brain"
OTHER_TISSUES: dict[str, tuple[str, ...]] = {
    "astrocytes": ("fibrillary astrocytes", "star shaped astrocytes", "astroglia"),
    "oligodendroglia": ("oligodendrocytes with clear haloes", "a honeycomb of oligodendroglia"),
    "meninges": ("meningothelial whorls", "arachnoid caps"),
    "cortex": ("cortical neurons", "layered grey matter"),
    "tracts": ("myelinated axons", "white matter tracts"),
    "plexus": ("choroid plexus fronds", "papillae of the ependyma"),
}
OTHER_PHRASES = (
    "psammoma bodies",
    "Rosenthal fibres",
    "microvascular sprouting",
    "perivascular cuffs",
    "a spongy neuropil",
    "chicken wire capillaries",
    "gemistocytes",
    "granular ependymitis",
)
OTHER_DIAGNOSES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "diffuse_glioma": ("astrocytes", "diffuse glioma", ("tracts", "cortex")),
    "oligodendroglioma": ("oligodendroglia", "oligodendroglioma", ("cortex", "tracts")),
    "meningioma": ("meninges", "meningioma", ("cortex", "plexus")),
    "gliosis": ("cortex", "reactive gliosis", ("astrocytes", "tracts")),
    "papilloma": ("plexus", "papilloma of the plexus", ("astrocytes", "meninges")),
}
"""Main tissue, name in the diagnosis line, and other tissues, by label."""
OTHER_CLINICAL = (
    "Seizures for {b} months, a lesion on magnetic resonance.",
    "Headache and double vision in a person of {n} years.",
    "Progressive weakness of one arm.",
    "Memory loss; the family noted a change of character.",
)
OTHER_GROSS = (
    "Received fresh, labelled {site}, are {b} stereotactic cores.",
    "A soft grey piece, {a} x {b} cm, is all embedded in {n} blocks.",
    "An ultrasonic aspirate of {a} ml from the {site} was spun down.",
    "A smear was made while the surgeon waited.",
)
OTHER_PROCEDURES = ("stereotactic biopsy", "craniotomy", "debulking")
