"""Arms beyond the published recipe: zero labels, tuning of the text encoder, a second VLM and self-training."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from run_files import predictions
from safetensors.torch import load_file
from tiny_models import MakeConfig, save_clip

import clipit
from clipit.config.run import RunConfig
from clipit.errors import ConfigError, DataError
from clipit.prompts.dictionary import load_dictionary
from clipit.runs.train import train_run
from clipit.training.arms import resolve_arm
from clipit.training.terms.bag_members import PromptMembers, make_contrast_bags, prompt_members
from clipit.training.terms.term_table import active_terms
from clipit.workspace.workspace import Workspace

pytestmark = pytest.mark.slow


def training_facts(folder: Path) -> dict[str, object]:
    values: dict[str, object] = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return values


def with_labels(config: RunConfig, table: Path, change: Callable[[str, int], str]) -> Path:
    """Copy the tile table with changed training and validation labels."""
    source = Path(config.tiles.path)
    head, *rows = source.read_text(encoding="utf-8").splitlines()
    changed = []
    for number, row in enumerate(rows):
        path, label, split, group = row.split(",")
        label = label if split == "test" else change(label, number)
        changed.append(",".join([str(source.parent / path), label, split, group]))
    table.write_text("\n".join([head, *changed]) + "\n", encoding="utf-8")
    return table


def test_zero_label_does_not_read_labels(configure: MakeConfig, tmp_path: Path) -> None:
    config = configure()
    names = ("gland", "stroma", "tumour")
    folders = []
    for name, change in (
        ("original", lambda label, number: label),
        ("arbitrary", lambda label, number: names[number % 3]),
        ("none", lambda label, number: ""),
    ):
        table = with_labels(config, tmp_path / f"{name}.csv", change)
        keys = {"tiles.path": str(table), "training.steps": 4, "training.evaluate_every": 2, "name": name}
        folders.append(train_run(configure({**keys, "tiles.classes": list(names)}, arm="zero_label")))
    weights = [load_file(folder / "classifier" / "model.safetensors") for folder in folders]
    for other in weights[1:]:
        assert all(np.array_equal(weights[0][key], other[key]) for key in weights[0])
    assert training_facts(folders[0])["score"] is not None, "the step is selected by agreement"
    assert training_facts(folders[0])["training_labels"] == 0
    table = predictions(folders[2])
    assert set(table.column("split").to_pylist()) == {"validation", "test"}


def test_the_validation_split_does_not_depend_on_labels_without_a_label_budget(
    configure: MakeConfig, tmp_path: Path
) -> None:
    config = configure()
    parts = []
    for name, change in (("original", lambda label, number: label), ("changed", lambda label, number: "tumour")):
        table = with_labels(config, tmp_path / f"{name}.csv", change)
        table.write_text(table.read_text(encoding="utf-8").replace(",validation,", ",train,"), encoding="utf-8")
        keys = {"tiles.path": str(table), "tiles.labels.kind": "none", "tiles.classes": ["gland", "stroma", "tumour"]}
        tiles = Workspace(configure(keys)).all_tiles
        parts.append(tiles.splits)
    assert np.array_equal(*parts) and (parts[0] == "validation").any()


@pytest.mark.parametrize("text", ["adapter", "lora"])
def test_the_text_encoder_is_tuned_and_the_time_is_recorded(configure: MakeConfig, text: str) -> None:
    config = configure({"training.steps": 2}, name=f"text-{text}", arm=f"text_{text}")
    workspace = Workspace(config)
    before = workspace.vlm.encode_texts(["tumour with atypia"])
    folder = train_run(config, workspace)
    assert f"text_{text}_seconds" in training_facts(folder)["text_side"]  # type: ignore[operator]
    after = workspace.vlm.encode_texts(["tumour with atypia"])
    assert np.array_equal(before, after), "the VLM itself is unchanged"
    classifier = clipit.load_classifier(folder / "classifier")
    assert classifier.spec.vlm is None, "the projections are not in the VLM's joint space"


def test_a_second_vlm_has_its_own_projector(configure: MakeConfig, tmp_path: Path) -> None:
    other = save_clip(tmp_path / "other", seed=5)
    config = configure(
        {"training.steps": 3, "second_vlm.name": str(other)}, name="two-teachers", arm="clip_it_all", output=tmp_path
    )
    folder = train_run(config)
    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert first["second_distillation"] > 0 and first["second_distillation"] != first["distillation"]
    classifier = clipit.load_classifier(folder / "classifier")  # the export has compared the logits
    assert classifier.spec.plain
    with pytest.raises(ConfigError, match=r"student\.head=linear"):
        train_run(configure({"second_vlm.name": str(other)}, name="fused", arm="clip_it_paper"))


def test_self_training_learns_from_the_image_only_run_of_its_seed(configure: MakeConfig, tmp_path: Path) -> None:
    config = configure({"training.steps": 3}, name="alone", arm="self_training", output=tmp_path)
    folder = train_run(config)
    teacher = folder.parents[1] / "alone-teacher" / "image_only-seed0"
    assert (teacher / "results.json").is_file()
    assert "vlm" not in training_facts(folder), "self-training does not use the VLM"


def test_self_training_depends_on_all_keys_of_its_teacher(configure: MakeConfig) -> None:
    def inputs(**arm: object) -> dict[str, str]:
        config = resolve_arm(configure(arms={"image_only": {"base": "image_only", **arm}}, arm="self_training"))
        (term,) = (term for term in active_terms(config) if term.name == "soft_labels")
        return term.fingerprints(Workspace(config))

    default, faster = inputs(), inputs(**{"training.learning_rate": 0.07})
    assert default.keys() == faster.keys() and default != faster
    frozen = inputs(**{"backbone.tuning": "frozen"})
    assert frozen["arm image_only"] == default["arm image_only"] and frozen != default


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"prompts": None, "arm": "zero_label"}, "needs a prompt set"),
        ({"arm": "bags", "pairing.k": 2, "overrides": ["pairing.k"]}, "pairing.k is 2"),
        ({"arm": "bags", "training.accumulation": 2}, "accumulation"),
        ({"arm": "clip_it_all", "training.monitor": "agreement"}, "soft_labels.source"),
        ({"reports": None, "arm": "bags"}, "needs reports"),
        ({"student.projector_layers": 0}, "distillation needs a projector"),
        ({"reports": None}, "distillation from text needs reports"),
        ({"training.tiles_per_step": 2, "training.accumulation": 3}, "less than one tile per micro-batch"),
        (
            {"student.head": "late_fusion", "student.warm_start": True, "distillation.tiles": "none"},
            "paired text",
        ),
    ],
)
def test_contradicting_keys_are_an_error_before_anything_is_built(
    configure: MakeConfig, keys: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        train_run(configure(keys, name="wrong"))


def test_training_without_labels_or_a_substitute_is_an_error(configure: MakeConfig) -> None:
    config = configure({"tiles.labels.kind": "none"}, name="nothing", arm="clip_it_all")
    with pytest.raises(DataError, match="arm=zero_label"):
        train_run(config)


def test_bags_contain_neighbours_and_nearby_prompts(configure: MakeConfig) -> None:
    keys = {
        "pairing.k": 5, "bags.weight": 0.5, "bags.text_neighbours": True, "bags.prompts": 4, "bags.class_prompts": 3,
        "bags.margin": 0.0,
    }  # fmt: skip
    config = configure(keys, name="full-bags", arm="clip_it_all")
    workspace = Workspace(config)
    train = workspace.all_tiles.of_split("train")
    bags = make_contrast_bags(config, workspace, train)
    assert bags.prompts is not None and bags.prompts.rows.shape == (72, 7)
    assert (bags.prompts.exists.sum(axis=1) >= 1).all() and (bags.prompts.exists.sum(axis=1) < 7).all()
    assert bags.tiles is not None and ((bags.tiles.members >= 0).sum(axis=1) >= 1).all()
    wide = make_contrast_bags(configure({**keys, "bags.margin": None}, arm="clip_it_all"), workspace, train)
    assert wide.prompts is not None and wide.prompts.exists.all()
    assert (wide.tiles.members >= 0).sum() > (bags.tiles.members >= 0).sum()  # type: ignore[union-attr]
    vectors, mask = bags.text_members(np.arange(4))
    assert vectors.shape[:2] == mask.shape == (4, bags.texts.members.shape[1] + 7)


def test_bags_contain_whole_dictionary_entries_of_the_nearest_texts(configure: MakeConfig, tmp_path: Path) -> None:
    entries = [
        {"id": "fat", "term": "fat", "variants": ["adipose", "lipid"], "findings": ["white holes"], "causes": ["diet"]},
        {"id": "mucin", "term": "mucin", "variants": ["mucus", "pools of mucin"]},
        {"id": "scar", "term": "scar", "variants": ["fibrosis", "old wound"], "causes": ["injury"]},
    ]
    common_keys = {"kind": "tissue", "organ": "any", "source": "own"}
    file = tmp_path / "dictionary.yaml"
    file.write_text(
        json.dumps(
            {"name": "own", "version": "1", "chapter": "all", "entries": [entry | common_keys for entry in entries]}
        ),
        encoding="utf-8",
    )
    dictionary = load_dictionary(file)
    keys = {"bags.weight": 0.5, "bags.prompts": 2, "bags.class_prompts": 1, "bags.dictionary": str(file)}
    config = configure(keys, name="entries", arm="clip_it_all")
    workspace = Workspace(config)
    train = workspace.all_tiles.of_split("train")
    nearest, whole = (
        prompt_members(configure({**keys, "bags.whole_entries": whole_entries}, arm="clip_it_all"), workspace, train)
        for whole_entries in (False, True)
    )

    def texts(members: PromptMembers, row: int) -> list[str]:
        return [members.texts[members.codes[i]] for i in members.rows[row][members.exists[row]]]

    entry_of = {text: name for name in dictionary.entries for text in dictionary.texts(name)}
    bags = set()
    for row in range(len(train)):
        *terms, prompt = texts(nearest, row)
        names = list(dict.fromkeys(entry_of[term] for term in terms))
        assert texts(whole, row) == [*(text for name in names for text in dictionary.bag(name)), prompt]
        bags.add(tuple(names))
    assert len(bags) > 1, "all tiles have the same entries"


def test_distilled_tiles_without_a_pair_are_an_error(configure: MakeConfig) -> None:
    config = configure({"pairing.threshold": 0.999}, name="nobody", arm="clip_it_labelled")
    with pytest.raises(DataError, match="pair"):
        train_run(config)
