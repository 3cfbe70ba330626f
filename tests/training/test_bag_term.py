"""The many-to-many term of a batch: members from stores, weights, shared texts and several processes."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import ROOT, start
from tiny_models import write_store

from clipit.config.run import BagsConfig, RunConfig, StudentConfig, TilesConfig
from clipit.distributed import Processes
from clipit.models.student import Student
from clipit.training.losses import many_to_many_sum
from clipit.training.terms.bag_members import BagMembers, ContrastBags, PromptMembers
from clipit.training.terms.bags import MIN_TEMPERATURE, BagsTerm, share_text
from clipit.training.terms.term import MicroBatch
from clipit.vectors import unit

DIM, TILES, SNIPPETS = 6, 9, 7
ALONE = Processes(0, 1, torch.device("cpu"))


def vectors(n: int, seed: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32))


def make_contrast_bags(root: Path, *, prompts: bool = True) -> ContrastBags:
    """Return bags of tiles with up to three snippets, optionally two prompts, and two neighbouring tiles."""
    draws = np.random.default_rng(5)
    texts = write_store(root, [f"s{i}" for i in range(SNIPPETS)], vectors(SNIPPETS, 0))
    tiles = write_store(root, [f"t{i}" for i in range(TILES)], vectors(TILES, 1), kind="tile_store")
    members = np.stack([draws.permutation(SNIPPETS)[:3] for _ in range(TILES)])
    members[np.arange(3) >= draws.integers(1, 4, size=(TILES, 1))] = -1
    members[4] = -1
    weights = np.where(members >= 0, draws.random(members.shape) + 0.1, 0).astype(np.float32)
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
    more = PromptMembers(
        vectors=vectors(5, 2),
        codes=np.array([0, 1, 2, 0, 3]),  # the first and fourth prompts have the same text
        rows=np.stack([draws.permutation(5)[:2] for _ in range(TILES)]),
        exists=draws.random((TILES, 2)) < 0.7,
    )
    neighbours = draws.integers(-1, TILES, size=(TILES, 2))
    return ContrastBags(
        BagMembers(texts, None, members), more if prompts else None, BagMembers(tiles, None, neighbours), {}, weights
    )


def bags_term(options: BagsConfig, bags: ContrastBags) -> BagsTerm:
    term = BagsTerm(RunConfig(tiles=TilesConfig(source="table", path="tiles.csv"), bags=options))
    term.bags = bags
    return term


def loss(
    options: BagsConfig,
    bags: ContrastBags,
    projected: torch.Tensor,
    rows: np.ndarray,
    student: torch.nn.Module | None = None,
    processes: Processes = ALONE,
) -> torch.Tensor:
    """Loss for given projections; a process passes its own rows and all rows."""
    labels = torch.full((len(projected),), -1)
    local = rows[processes.rank :: processes.count]
    logits = (torch.zeros(len(projected), 2),)
    module = student or torch.nn.Identity()
    return bags_term(options, bags).sum(MicroBatch(local, rows, labels, logits, (projected,), None, module, processes))


@pytest.mark.parametrize("seed", range(5))
def test_bags_that_share_a_text_match_a_plain_loop(seed: int) -> None:
    members = np.random.default_rng(seed).integers(-1, 12, size=(8, 3))
    bags = [set(row.tolist()) - {-1} for row in members]
    assert share_text(members).tolist() == [[bool(bag & other) for other in bags] for bag in bags]


def test_shared_texts_of_bags_with_many_equal_members_and_of_empty_bags(tmp_path: Path) -> None:
    assert share_text(np.tile(np.arange(300), (2, 1))).all()
    assert not share_text(np.full((3, 2), -1)).any()
    assert share_text(np.empty((2, 0), dtype=np.int64)).shape == (2, 2)


def test_text_ids_distinguish_snippets_and_prompt_texts(tmp_path: Path) -> None:
    bags = make_contrast_bags(tmp_path)
    rows = np.arange(TILES)
    ids = bags.text_ids(rows)
    assert np.array_equal(ids >= 0, bags.text_members(rows)[1])
    assert np.array_equal(ids[:, :3], bags.texts.members)
    assert bags.prompts is not None
    codes = bags.prompts.codes[bags.prompts.rows] + SNIPPETS
    assert np.array_equal(ids[:, 3:], np.where(bags.prompts.exists, codes, -1))


def test_snippet_weights_average_to_1_and_prompts_have_weight_1(tmp_path: Path) -> None:
    bags = make_contrast_bags(tmp_path)
    weights = bags.text_weights(np.arange(TILES))
    assert weights is not None and bags.prompts is not None and bags.weights is not None
    counts = (bags.texts.members >= 0).sum(axis=1)
    assert np.allclose(weights[:, :3].sum(axis=1), counts)
    assert np.allclose(weights[:, :3], bags.weights * counts[:, None])
    assert np.array_equal(weights[:, 3:], bags.prompts.exists.astype(np.float32))


@pytest.mark.parametrize("prompts", [True, False])
def test_the_term_is_the_mean_over_bags_with_texts(tmp_path: Path, prompts: bool) -> None:
    bags = make_contrast_bags(tmp_path, prompts=prompts)
    projected = torch.from_numpy(vectors(6, 3)).requires_grad_()
    rows = np.array([0, 4, 4, 2, 7, 2])
    texts, mask = (torch.from_numpy(values) for values in bags.text_members(rows))
    assert bags.tiles is not None
    near, near_mask = bags.tiles.vectors(rows)
    images = torch.cat([projected[:, None], torch.from_numpy(near)], dim=1)
    image_mask = torch.cat([torch.ones(6, 1, dtype=torch.bool), torch.from_numpy(near_mask)], dim=1)
    weights = bags.text_weights(rows)
    assert weights is not None
    for shared in (True, False):
        same = None if shared else torch.from_numpy(share_text(bags.text_ids(rows)))
        expected, count = many_to_many_sum(
            images, image_mask, texts, mask, 0.07, same=same, text_weights=torch.from_numpy(weights)
        )
        actual = loss(BagsConfig(weight=1, shared_negatives=shared), bags, projected, rows)
        assert actual.item() == pytest.approx(expected.item() / count, rel=1e-6)
    with_all = loss(BagsConfig(weight=1), bags, projected, rows)
    assert actual.item() < with_all.item(), "excluding shared texts leaves fewer negatives"


def test_copies_of_a_tile_are_negatives_only_with_shared_negatives(tmp_path: Path) -> None:
    bags = make_contrast_bags(tmp_path, prompts=False)
    projected, rows = torch.from_numpy(vectors(2, 3)), np.array([2, 2])
    assert loss(BagsConfig(weight=1, shared_negatives=False), bags, projected, rows).item() == 0
    assert loss(BagsConfig(weight=1), bags, projected, rows).item() > 0


def warm_student(temperature: float) -> Student:
    return Student(
        torch.nn.Identity(),
        StudentConfig(),
        dim=4,
        n_classes=2,
        joint_dim=DIM,
        loss_parameters={"bags_log_temperature": math.log(temperature)},
    )


def test_a_learnt_temperature_is_clamped_and_can_rise_again(tmp_path: Path) -> None:
    student, bags, rows = warm_student(0.001), make_contrast_bags(tmp_path), np.arange(6)
    term, temperature = bags_term(BagsConfig(weight=1), bags), student.loss_parameters["bags_log_temperature"]
    term.after_update(student)
    assert temperature.exp().item() == pytest.approx(MIN_TEMPERATURE)
    with torch.no_grad():
        temperature.sub_(1e-6)  # a value slightly below the bound must still get a gradient
    projected = torch.from_numpy(vectors(6, 3))  # random projections, for which a higher temperature lowers the loss
    loss(BagsConfig(weight=1), bags, projected, rows, student).backward()
    assert temperature.grad is not None and temperature.grad.item() < 0
    warm = warm_student(0.2)
    term.after_update(warm)
    assert warm.loss_parameters["bags_log_temperature"].exp().item() == pytest.approx(0.2)


TWO_PROCESSES = """
import sys
from pathlib import Path
import numpy as np
import torch
import torch.distributed as dist
sys.path[:0] = [{tests!r}, {training!r}]
from clipit.config.run import BagsConfig
from clipit.distributed import Processes
from test_bag_term import loss, make_contrast_bags, vectors
rank, folder = int(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{{folder}}/meet", rank=rank, world_size=2)
rows = np.array([0, 4, 1, 2, 7, 2, 8])
projected = torch.from_numpy(vectors(7, 3))[rank::2].clone().requires_grad_()
processes = Processes(rank, 2, torch.device("cpu"))
options = BagsConfig(weight=1, shared_negatives=False)
value = loss(options, make_contrast_bags(folder / str(rank)), projected, rows, processes=processes)
value.backward()
np.savez(folder / f"{{rank}}.npz", loss=value.item(), gradient=projected.grad.numpy())
dist.destroy_process_group()
left = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
assert not [name for name in left if "gloo" in name], left
"""


@pytest.mark.slow
def test_two_processes_share_the_term_and_its_gradient(tmp_path: Path) -> None:
    script = tmp_path / "share.py"
    script.write_text(TWO_PROCESSES.format(tests=str(ROOT / "tests"), training=str(Path(__file__).parent)))
    for rank in ("0", "1"):
        (tmp_path / rank).mkdir()
    programs = [start(script, rank, tmp_path) for rank in ("0", "1")]
    results = [program.wait() for program in programs]
    assert [program.returncode for program in results] == [0, 0], results
    rows, projected = np.array([0, 4, 1, 2, 7, 2, 8]), torch.from_numpy(vectors(7, 3)).requires_grad_()
    (tmp_path / "alone").mkdir()
    expected = loss(
        BagsConfig(weight=1, shared_negatives=False), make_contrast_bags(tmp_path / "alone"), projected, rows
    )
    expected.backward()
    parts = [np.load(tmp_path / f"{rank}.npz") for rank in (0, 1)]
    assert sum(float(part["loss"]) for part in parts) == pytest.approx(expected.item(), rel=1e-5)
    assert projected.grad is not None
    for rank, part in enumerate(parts):
        assert np.allclose(part["gradient"], projected.grad[rank::2].numpy(), atol=1e-6)
