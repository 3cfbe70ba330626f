"""Estimates of the memory of training, and what is chosen by them."""

import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from logged_lines import capture_log
from tiny_backbones import TINY, save_vit
from torch import nn
from torch.profiler import ProfilerActivity, profile

import clipit.training.fitting as fitting
from clipit.config.run import BackboneConfig, LoraConfig, RunConfig, StudentConfig
from clipit.distributed import Processes
from clipit.doctor.memory import check_memory
from clipit.errors import ConfigError, ModelError
from clipit.free_memory import _cgroup_memory, device_memory
from clipit.models.backbones import load_backbone
from clipit.models.checkpointing import set_checkpointing
from clipit.models.lora import add_lora
from clipit.models.student import Student, build_student
from clipit.runs.folder import run_folder
from clipit.runs.train import train_run
from clipit.training.fitting import _smallest_memory, choose_fit
from clipit.training.memory import Activations, MemoryEstimate, estimate_memory
from clipit.training.precision import resolve_precision

MakeConfig = Callable[..., RunConfig]
TILES = 6


def student_of(name: str, tuning: str, pixels: int) -> tuple[Student, Callable[[torch.Tensor], torch.Tensor]]:
    config = BackboneConfig.model_validate({"name": name, "pretrained": False, "pixels": pixels, "tuning": tuning})
    backbone = load_backbone(config)
    student = build_student(backbone, StudentConfig(), LoraConfig(), config.tuning, n_classes=3, joint_dim=64)
    return student, backbone.preprocess.normalise


def measured_peak(work: Callable[[], None]) -> int:
    """Peak of what torch's allocator gives out, beside what was in use before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(np.cumsum(sizes).max())


@pytest.mark.parametrize(
    ("name", "tuning", "pixels"),
    [("vit_small_patch16_224", "lora", 96), ("resnet18", "full", 96), ("transformers", "full", 32)],
)
def test_the_estimate_is_within_a_fifth_of_the_measured_peak(
    name: str, tuning: str, pixels: int, tmp_path: Path
) -> None:
    if name == "transformers":
        wide = {"hidden_size": 96, "num_hidden_layers": 4, "intermediate_size": 384}
        name = str(save_vit(tmp_path, "ViT", **wide))
    student, normalise = student_of(name, tuning, pixels)
    weights = {key: value.clone() for key, value in student.state_dict().items()}
    random_state = torch.get_rng_state()
    estimate = estimate_memory(student, normalise, pixels)
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(torch.equal(weights[key], value) for key, value in student.state_dict().items())
    assert all(parameter.grad is None for parameter in student.parameters())
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad])

    def step() -> None:
        output = student(normalise(torch.zeros(TILES, 3, pixels, pixels, dtype=torch.uint8)))
        (output.logits.sum() + output.projected.sum()).backward()
        del output
        optimizer.step()
        optimizer.zero_grad()

    step()  # makes the optimiser's state
    for checkpointing in (False, True):
        assert set_checkpointing(student.backbone, checkpointing)
        total = estimate.total(TILES, checkpointing=checkpointing) - estimate.weights - estimate.optimiser
        assert total == pytest.approx(measured_peak(step), rel=0.2)


def test_a_frozen_backbone_keeps_no_activations() -> None:
    module = timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY)
    module.requires_grad_(False)
    student = Student(module, StudentConfig(), dim=32, n_classes=3, joint_dim=8).train()
    assert kept_in(student, [module.patch_embed, *module.blocks]) == [0, 0, 0]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_blocks_before_the_first_adapter_keep_no_activations(checkpointing: bool) -> None:
    module = timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY)
    parts = [module.patch_embed, *module.blocks]
    adapted = add_lora(module, LoraConfig(rank=2, targets=("blocks.1.attn.qkv",))).train()
    set_checkpointing(adapted, checkpointing)
    before, first, second = kept_in(adapted, parts)
    assert (before, first) == (0, 0) and second > 0


def kept_in(model: nn.Module, parts: list[nn.Module]) -> list[int]:
    """Inputs and inner outputs of each part that are alive after the forward pass, because autograd needs them."""
    alive: list[list[weakref.ref[torch.Tensor]]] = [[] for _ in parts]
    for part, kept in zip(parts, alive, strict=True):
        part.register_forward_pre_hook(lambda _, inputs, kept=kept: kept.append(weakref.ref(inputs[0])))
        for inner in part.modules():
            if inner is not part:
                inner.register_forward_hook(lambda _, inputs, output, kept=kept: kept.append(weakref.ref(output)))
    output = model(torch.randn(2, 3, 32, 32))
    counts = [sum(tensor() is not None for tensor in kept) for kept in alive]
    del output
    return counts


def made_estimate(supported: bool = True) -> MemoryEstimate:
    """100 bytes of weights; 10 per tile, or 2 with checkpointing."""
    one = np.ones(1)
    checkpointed = Activations(20 * one, 2 * one) if supported else None
    return MemoryEstimate(100, 10, 20, 10, Activations(0 * one, 10 * one), checkpointed)


@pytest.mark.parametrize(
    ("keys", "free", "expected"),
    [
        ({}, 900, (False, 1, 760)),  # 100 + 20 + 64 x 10
        ({}, 800, (True, 1, 268)),  # nine tenths of 800 are not enough: 100 + 20 + 20 + 64 x 2
        ({"gradient_checkpointing": "always"}, 900, (True, 1, 268)),
        ({"gradient_checkpointing": "never", "accumulation": "auto"}, 800, (False, 2, 450)),  # and older gradients
        ({"accumulation": "auto"}, 800, (False, 2, 450)),
        ({"accumulation": "auto"}, 200, (True, 5, 176)),  # no more than 3 tiles at once otherwise
        ({"accumulation": 4}, 400, (False, 4, 290)),
    ],
)
def test_checkpointing_and_micro_batches_are_chosen_to_fit(
    configure: MakeConfig, keys: dict[str, object], free: int, expected: tuple[bool, int, int]
) -> None:
    config = configure({"training.tiles_per_step": 64, **{f"training.{key}": value for key, value in keys.items()}})
    fit = choose_fit(config, made_estimate(), free)
    assert (fit.checkpointing, fit.micro_batches, fit.needed) == expected


def test_several_processes_share_the_tiles_and_exchange_gradients(configure: MakeConfig) -> None:
    fit = choose_fit(configure({"training.tiles_per_step": 64}), made_estimate(), 900, processes=2)
    assert fit.needed == 100 + 20 + 10 + 32 * 10


def test_a_batch_that_cannot_fit_gives_the_numbers_and_three_ways_out(configure: MakeConfig) -> None:
    config = configure({"training.tiles_per_step": 64, "training.gradient_checkpointing": "never"})
    with pytest.raises(ConfigError) as caught:
        choose_fit(config, made_estimate(), 400)
    message = str(caught.value)
    assert "64 tiles needs 760 bytes" in message and "only 360 bytes can be used" in message
    for way in ("gradient_checkpointing=auto (needs 268", "accumulation=3 (needs 350", "tiles_per_step=16 (needs 280"):
        assert way in message
    config = configure({"backbone.tuning": "full"})
    with pytest.raises(ConfigError, match=r"frozen.*; or a smaller backbone .*; or a device with more memory"):
        choose_fit(config, made_estimate(), 100)


def test_terms_that_need_the_whole_batch_get_no_micro_batches(configure: MakeConfig) -> None:
    keys = {"bags.weight": 1.0, "pairing.k": 5, "training.tiles_per_step": 64, "training.accumulation": "auto"}
    assert choose_fit(configure(keys), made_estimate(), 800).checkpointing
    with pytest.raises(ConfigError, match="64 tiles"):
        choose_fit(configure(keys), made_estimate(supported=False), 800)


def test_a_backbone_without_checkpointing_is_refused_where_it_is_asked_for(configure: MakeConfig) -> None:
    config = configure({"training.gradient_checkpointing": "always"})
    with pytest.raises(ModelError, match="does not support gradient checkpointing"):
        choose_fit(config, made_estimate(supported=False), 10_000)


def test_a_training_that_cannot_fit_stops_before_any_work(
    configure: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "device_memory", lambda device: 1000)
    config = configure({}, name="too-large")
    with pytest.raises(ConfigError, match=r"(?s)tiles needs .*training\.tiles_per_step"):
        train_run(config)
    assert not (run_folder(config) / "checkpoints").exists()
    assert not any(run_folder(config).parents[1].parent.glob("text_store-*"))


def test_the_doctor_estimates_without_weights(configure: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    (check,) = check_memory(configure({"training.tiles_per_step": 8}))
    assert check.status == "PASS" and "memory of training: " in check.message and "8 images of" in check.message
    monkeypatch.setattr("clipit.free_memory.device_memory", lambda device: 1000)
    (check,) = check_memory(configure({"training.tiles_per_step": 8}))
    assert check.status == "FAIL" and "8 tiles needs" in check.message and "backbone.tuning=frozen" in check.fix


def test_limits_of_containers_and_batch_systems_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < device_memory(torch.device("cpu")) < 1e14
    monkeypatch.setattr("os.getpid", lambda: 7)
    lines = {"proc/7/cgroup": "3:cpu,memory:/job\n0::/outer/inner\n"}
    folder = "sys/fs/cgroup/memory/job"
    lines |= {f"{folder}/memory.limit_in_bytes": "900", f"{folder}/memory.usage_in_bytes": "500"}
    lines |= {f"{folder}/memory.stat": "cache 70\ntotal_inactive_file 50\n"}
    folder = "sys/fs/cgroup/outer"
    lines |= {f"{folder}/memory.max": "1000", f"{folder}/memory.current": "400"}
    lines |= {f"{folder}/memory.stat": "anon 300\ninactive_file 60\n"}
    lines |= {f"{folder}/inner/memory.max": "max", f"{folder}/inner/memory.current": "400"}
    for name, text in lines.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert sorted(_cgroup_memory(tmp_path)) == [450, 660]
    assert list(_cgroup_memory(tmp_path / "none")) == []


def test_without_a_gpu_the_automatic_precision_is_none(configure: MakeConfig) -> None:
    config = configure()
    assert config.training.precision == "auto"
    assert resolve_precision(config).training.precision == "no"
    assert resolve_precision(configure({"training.precision": "bf16"})).training.precision == "bf16"


def test_processes_on_unequal_devices_take_the_smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    processes, lines = Processes(0, 2, torch.device("cpu")), capture_log()
    for places, smallest in ((("cpu", 100), ("cpu", 100)), 50), ((("cuda:0", 80), ("cuda:1", 40)), 40):
        gathered = [(("node", device), free) for device, free in places]
        monkeypatch.setattr(Processes, "gather", lambda *_, gathered=gathered: gathered)
        assert _smallest_memory(processes) == smallest
    (note,) = lines
    assert "different free memory, 80 bytes, 40 bytes" in note
