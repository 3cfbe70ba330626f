"""Parts of the training loop that can be tested without a run."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from run_files import losses
from torch import nn

from clipit.config.run import RunConfig, StudentConfig
from clipit.distributed import get_processes
from clipit.errors import ModelError
from clipit.models.student import Student
from clipit.runs.folder import run_folder
from clipit.runs.train import train_run
from clipit.training.checkpoints import Progress, best_file
from clipit.training.loop import _check_finite, _record_score, clip_gradients, warmup_cosine

MakeConfig = Callable[..., RunConfig]


def test_warmup_rises_to_one_and_the_cosine_decays_to_almost_zero() -> None:
    rates = [warmup_cosine(step, 100, 0.1) for step in range(100)]
    assert rates[:10] == [pytest.approx((step + 1) / 10) for step in range(10)]
    assert max(rates) == 1 and rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.001
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_the_schedule_is_finite_without_warmup_and_with_warmup_only(warmup: float) -> None:
    rates = [warmup_cosine(step, 5, warmup) for step in range(5)]
    assert all(0 < rate <= 1 and math.isfinite(rate) for rate in rates)


def validate(folder: Path, scores: list[float | None], patience: int | None) -> Progress:
    student = Student(nn.Linear(2, 2), StudentConfig(projector_layers=0), dim=2, n_classes=2, joint_dim=None)
    progress = Progress()
    for score in scores:
        if not progress.stopped:
            progress.step += 1
            _record_score(progress, score, patience, folder, student, get_processes())
    return progress


@pytest.mark.parametrize(("max_norm", "clipped"), [(0.0, 5.0), (1.0, 1.0), (10.0, 5.0)])
def test_gradients_are_clipped_and_their_norm_before_clipping_is_returned(max_norm: float, clipped: float) -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    assert clip_gradients([weight], max_norm) == pytest.approx(5.0)
    assert float(weight.grad.norm()) == pytest.approx(clipped, rel=1e-5)


def test_a_function_that_returns_no_norm_gives_nan() -> None:
    assert math.isnan(clip_gradients([], 1.0, lambda *_: None))


def test_the_best_step_is_the_earliest_of_equal_scores(tmp_path: Path) -> None:
    progress = validate(tmp_path, [0.2, 0.5, 0.4, 0.5], None)
    assert (progress.best_step, progress.best_score, progress.stopped) == (2, 0.5, False)
    assert best_file(tmp_path, 2).is_file() and not best_file(tmp_path, 4).exists()


def test_patience_is_the_number_of_scores_without_improvement(tmp_path: Path) -> None:
    progress = validate(tmp_path, [0.5, 0.4, 0.6, 0.5, 0.5, 0.9], 2)
    assert (progress.step, progress.best_step, progress.stopped) == (5, 3, True)


def test_undefined_scores_neither_improve_nor_use_up_patience(tmp_path: Path) -> None:
    progress = validate(tmp_path, [None, None, None], 2)
    assert (progress.best_step, progress.stopped) == (0, False)


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_diverging_training_stops_with_an_error(configure: MakeConfig, tuning: str) -> None:
    keys = {"training.learning_rate": 1e9, "training.warmup": 0.0, "training.log_every": 3, "training.steps": 30}
    config = configure({**keys, "backbone.tuning": tuning}, name=f"diverged-{tuning}")
    with pytest.raises(ModelError, match=r"(?s)(diverged|updates).*lower training\.learning_rate"):
        train_run(config)
    assert not (run_folder(config) / "classifier").exists()
    assert np.isfinite(losses(run_folder(config))).all()


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_the_error_for_non_finite_losses_names_the_steps(loss: float) -> None:
    _check_finite(torch.tensor(3.0), 5, 10, get_processes(), "training.learning_rate")
    with pytest.raises(ModelError, match=r"the loss in steps 6 to 10 is infinite or not a number"):
        _check_finite(torch.tensor(loss), 5, 10, get_processes(), "training.learning_rate")
    with pytest.raises(ModelError, match=r"the loss in step 10 is"):
        _check_finite(torch.tensor(loss), 9, 10, get_processes(), "training.learning_rate")
