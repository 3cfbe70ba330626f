"""Table of the loss terms, in their order of preparation and summation, and queries over the active terms.

A term with a section in `RunConfig` is a file in this folder and an entry of `TERMS`. The section classes are in
`clipit.config`, so that configurations can be read without torch and by lower layers. Any other term, in this package
or outside, defines its own keys and is named in the configuration: `terms.<name>.class`.
"""

import importlib
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from clipit.config.effects import declared_unused
from clipit.config.load import key_of
from clipit.config.run import RunConfig
from clipit.errors import ConfigError
from clipit.prompts.prompt_set import check_classes
from clipit.tiles.tileset import TileSet
from clipit.training.terms.bags import BagsTerm
from clipit.training.terms.consistency import ConsistencyTerm
from clipit.training.terms.cross_entropy import CrossEntropyTerm
from clipit.training.terms.distillation import DistillationTerm, SecondDistillationTerm
from clipit.training.terms.prompt_bags import PromptBagsTerm
from clipit.training.terms.soft_labels import SoftLabelsTerm
from clipit.training.terms.term import Probabilities, Term, TermInputs
from clipit.workspace.preflight import Model
from clipit.workspace.workspace import Workspace

TERMS: tuple[type[Term[Any]], ...] = (
    CrossEntropyTerm,
    DistillationTerm,
    SecondDistillationTerm,
    SoftLabelsTerm,  # before prompt_bags, which uses the soft labels
    PromptBagsTerm,
    ConsistencyTerm,
    BagsTerm,
)


def all_terms(config: RunConfig) -> list[Term[Any]]:
    """Create every term of a resolved configuration, active or not.

    Raises:
        ConfigError: A term under `terms` cannot be loaded, or its keys are invalid.
    """
    return [*(term(config) for term in TERMS), *(_load_term(config, name) for name in config.terms)]


def _load_term(config: RunConfig, name: str) -> Term[Any]:
    where, keys = f"terms.{name}", dict(config.terms[name])
    path = str(keys.pop("class", ""))
    module, _, attribute = path.partition(":")
    if any(term.name == name for term in TERMS):
        raise ConfigError(f"the package already has a loss term '{name}'", where=where, fix="use a different name")
    try:
        term_class = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"cannot import the loss term '{path}': {error}",
            where=f"{where}.class",
            fix="write package.module:Class, and install the package or add its folder to PYTHONPATH",
        ) from error
    if not (isinstance(term_class, type) and issubclass(term_class, Term)) or term_class.options_class is None:
        raise ConfigError(
            f"'{path}' is not a loss term, or does not define its keys (options_class)",
            where=f"{where}.class",
            fix="derive it from clipit.training.terms.term.Term and set its options_class",
        )
    try:
        return term_class(config, name, term_class.options_class.model_validate(keys))
    except ValidationError as error:
        problems = "; ".join(f"'{key_of((*where.split('.'), *e['loc']))}': {e['msg']}" for e in error.errors())
        raise ConfigError(
            f"the loss term has invalid keys: {problems}", where=where, fix=f"see the class {path}"
        ) from None


def active_terms(config: RunConfig) -> list[Term[Any]]:
    """Return the active terms of a configuration's loss."""
    return [term for term in all_terms(config) if term.active]


def teaches_text(config: RunConfig) -> bool:
    """Check whether the projector learns the VLM's text space, as zero-shot prediction requires."""
    teaching = {term.teaches_text for term in active_terms(config)}
    return True in teaching and False not in teaching


def uses_reports(config: RunConfig) -> bool:
    """Check whether an active term uses reports."""
    return any(term.uses_reports for term in active_terms(config))


def learns_from_reports(config: RunConfig) -> bool:
    """Check whether an active term learns from reports and no active term is a control (with meaningless targets)."""
    return uses_reports(config) and not any(term.is_control for term in active_terms(config))


def loss_columns(config: RunConfig) -> list[str]:
    """List the columns of metrics.jsonl with training losses: the total and each active term."""
    return ["loss", *(term.name for term in active_terms(config))]


def uses_own_report_labels(config: RunConfig) -> bool:
    """Check whether an active term uses labels from reports of the patients that the tiles come from."""
    return any("own_report" in term.reads for term in active_terms(config))


def uses_vlm(config: RunConfig) -> bool:
    """Check whether training uses the VLM."""
    return config.student.projector_layers > 0 or any(term.uses_vlm for term in active_terms(config))


def models_of(config: RunConfig) -> list[Model]:
    """Return the configuration sections of the models that training loads."""
    models: list[Model] = ["backbone"]
    models += ["vlm"] if uses_vlm(config) else []
    return [*models, "second_vlm"] if config.second_vlm is not None else models


def uses_unlabelled(config: RunConfig) -> bool:
    """Check whether training uses unlabelled tiles."""
    return any(term.uses_unlabelled for term in active_terms(config))


def supervises_unlabelled(config: RunConfig) -> bool:
    """Check whether unlabelled tiles get class targets, in which case a run needs no labels."""
    return any(term.supervises_unlabelled for term in active_terms(config))


def uses_key(config: RunConfig, key: str) -> bool:
    """Check whether an active loss term uses a key; keys that belong to no term count as used."""
    terms = all_terms(config)
    if key.startswith("pairing."):
        return any(term.active and term.uses_pairing for term in terms)
    owners = [term for term in terms if key.startswith(f"{term.section}.") and not term.shares_section]
    return not owners or any(term.active for term in owners)


def unused_keys(config: RunConfig) -> frozenset[str]:
    """Return the keys and sections that have no effect on training: those that sections and terms declare unused."""
    terms = all_terms(config)
    unused = {*declared_unused(config), *(() if uses_vlm(config) else ("vlm",))}
    for section in {term.section for term in terms}:
        unused |= frozenset.intersection(*(term.unused_keys() for term in terms if term.section == section))
    return frozenset(unused.difference(*(term.reads for term in terms if term.active)))


def describe_terms(config: RunConfig, *, validated: bool = True) -> str:
    """Describe the active terms with their weights, and the monitored metric, for the run's summary.

    Args:
        validated: Whether the monitored metric was defined on the validation split.
    """
    terms = "; ".join(part for term in active_terms(config) if (part := term.describe()))
    metric = config.training.monitor.replace("_", " ")
    if not validated:
        return f"{terms}. Last step, because {metric} is undefined on the validation split"
    return f"{terms}. Step selected by {metric} on the validation split"


def prepare_terms(
    config: RunConfig, workspace: Workspace, tiles: TileSet, image_only: Callable[[str], Probabilities]
) -> tuple[list[Term[Any]], dict[str, Any]]:
    """Prepare the active terms of a run, and return them with the entries to record in training.json.

    Args:
        config: Run configuration, with its arm resolved.
        tiles: All tiles, with the labels that the run may use.
        image_only: Function from a split to the class probabilities predicted by the image-only run with the same seed;
            it trains this run if necessary.

    Raises:
        DataError: The classes of the prompt set differ from those of the tiles, or a term finds no targets.
    """
    if workspace.prompts is not None and teaches_text(config):
        check_classes(workspace.prompts, tiles.classes)  # fail before training rather than at export
    facts: dict[str, Any] = {}
    terms = active_terms(config)
    for term in terms:
        term.labels = tiles.of_split("train").labels
        facts |= term.prepare(TermInputs(workspace, tiles, image_only, terms))
    return terms, facts
