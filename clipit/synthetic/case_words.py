"""The words of the corpus of cases: diagnosis lines that say the grade, and all that is said of another organ."""

# Diagnosis lines of the tiles' organs. Only here is a grade ever named.
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

# Another organ: tissues and findings that no tile shows, in words that no caption and no prompt has.
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
"""Label -> what it is made of, its name in the diagnosis line, and what lies beside it."""
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
