"""A custom loss term from a user's module, named in the YAML, with its own keys."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import MakeConfig

from clipit.config.command_line import read_command
from clipit.errors import ConfigError
from clipit.runs.fingerprint import run_fingerprint
from clipit.runs.train import train_run
from clipit.training.arms import resolve_arm
from clipit.training.config_checks import check_keys
from clipit.training.terms.term_table import active_terms, describe_terms, unused_keys, uses_key
from clipit.workspace.workspace import Workspace

ENTROPY = '''
import numpy as np
from pydantic import Field

from clipit.config.run import Section
from clipit.training.terms.term import MicroBatch, Term


class EntropyConfig(Section):
    """Keys of the entropy term, which favours confident predictions on unlabelled tiles."""

    weight: float = Field(0.1, ge=0)


class EntropyTerm(Term[EntropyConfig]):
    """Entropy of the predictions (Grandvalet and Bengio, NIPS 2004)."""

    options_class = EntropyConfig

    @property
    def uses_unlabelled(self):
        return True

    def count(self, rows):
        return float((self.labels[rows] < 0).sum())

    def sum(self, batch: MicroBatch):
        log_p = batch.logits.log_softmax(dim=1)
        return -(log_p.exp() * log_p).sum(dim=1)[batch.labels < 0].sum()
'''
NAMED = {"entropy": {"class": "entropy_term:EntropyTerm"}}


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "entropy_term.py").write_text(ENTROPY, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.slow
def test_a_run_trains_with_a_custom_term_and_its_keys(
    write_config: Callable[..., Path],
) -> None:
    keys = {"terms": {"entropy": {**NAMED["entropy"], "weight": 0.5}}, "training.steps": 3, "arm": "image_only"}
    path = write_config(keys)
    config, _ = read_command("train", ["--config", str(path), "--terms.entropy.weight=0.3"])
    assert "terms.entropy.weight" in config.overrides
    folder = train_run(config)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 3
    for row in rows:
        assert 0 < row["entropy"] < 1.1  # at most log 3
        assert row["loss"] == pytest.approx(row["cross_entropy"] + 0.3 * row["entropy"], rel=1e-5)
    facts = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    assert "entropy (weight 0.3)" in facts["terms"]


def test_the_weight_of_a_custom_term_is_part_of_the_fingerprint(configure: MakeConfig) -> None:
    def fingerprint(weight: float) -> str:
        config = configure({"terms": {"entropy": {**NAMED["entropy"], "weight": weight}}, "arm": "image_only"})
        return run_fingerprint(resolve_arm(config), Workspace(config), "backbone").value

    assert fingerprint(0.1) == fingerprint(0.1) != fingerprint(0.2)


def test_an_arm_can_set_the_keys_of_a_custom_term_and_disable_it(configure: MakeConfig) -> None:
    arms = {"calm": {"base": "image_only", "terms.entropy.weight": 0.0}}
    enabled = resolve_arm(configure({"terms": NAMED}, arm="image_only"))
    disabled = resolve_arm(configure({"terms": NAMED}, arm="calm", arms=arms))
    assert [term.name for term in active_terms(enabled)] == ["cross_entropy", "entropy"]
    assert [term.name for term in active_terms(disabled)] == ["cross_entropy"]
    assert "entropy (weight 0.1)" in describe_terms(enabled) and "entropy (weight" not in describe_terms(disabled)
    assert uses_key(enabled, "terms.entropy.weight") and not uses_key(disabled, "terms.entropy.weight")
    assert "terms.entropy.weight" not in unused_keys(disabled), "this key enables the term"


@pytest.mark.parametrize(
    ("terms", "match"),
    [
        ({"entropy": {**NAMED["entropy"], "wieght": 1}}, r"'terms\.entropy\.wieght'"),
        ({"entropy": {**NAMED["entropy"], "weight": -1}}, r"'terms\.entropy\.weight'(?s:.*)greater than or equal to 0"),
        ({"entropy": {"weight": 1}}, r"cannot import(?s:.*)terms\.entropy\.class(?s:.*)package\.module:Class"),
        ({"entropy": {"class": "nowhere:EntropyTerm"}}, r"nowhere(?s:.*)PYTHONPATH"),
        ({"entropy": {"class": "entropy_term:Entropy"}}, r"cannot import(?s:.*)Entropy"),
        ({"entropy": {"class": "entropy_term:EntropyConfig"}}, r"not a loss term(?s:.*)Term"),
        ({"bags": NAMED["entropy"]}, r"already has a loss term 'bags'"),
    ],
)
def test_invalid_custom_terms_are_refused(
    configure: MakeConfig, terms: dict[str, dict[str, object]], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        check_keys(configure(terms=terms))
