"""Estimates of the memory needed for training, and the choices based on them."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from logged_lines import capture_log
from tiny_backbones import TINY, save_vit
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.profiler import ProfilerActivity, profile

import clipit.training.memory_estimate as memory
import clipit.training.memory_plan as memory_plan
from clipit.config.run import BackboneConfig, LoraConfig, RunConfig, StudentConfig, VLMConfig
from clipit.distributed import Processes
from clipit.doctor.model_checks import check_training_memory, vlm_weight_bytes
from clipit.errors import ConfigError, ModelError
from clipit.free_memory import _cgroup_memory, device_memory
from clipit.images.read_ahead import bytes_ahead
from clipit.models.backbones import load_backbone
from clipit.models.checkpointing import set_checkpointing
from clipit.models.lora import add_lora
from clipit.models.student import Student, build_student
from clipit.runs.folder import resolve_run_precision, run_folder
from clipit.runs.train import train_run
from clipit.tiles.pixel_source import PixelSource
from clipit.training.auto_precision import resolve_precision
from clipit.training.memory_estimate import Activations, MemoryEstimate, estimate_memory
from clipit.training.memory_plan import _smallest_memory, choose_memory_plan
from clipit.workspace.workspace import Workspace

MakeConfig = Callable[..., RunConfig]
TILES = 6


def student_of(name: str, tuning: str, pixels: int) -> tuple[Student, Callable[[torch.Tensor], torch.Tensor]]:
    config = BackboneConfig.model_validate({"name": name, "pretrained": False, "pixels": pixels, "tuning": tuning})
    backbone = load_backbone(config)
    student = build_student(backbone, StudentConfig(), LoraConfig(), config.tuning, n_classes=3, joint_dim=64)
    return student, backbone.preprocess.normalise


def measured_peak(work: Callable[[], None]) -> int:
    """Peak bytes allocated by PyTorch during `work`, in excess of those allocated before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(np.cumsum(sizes).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tuning", "pixels"),
    [("vit_tiny_patch16_224", "lora", 96), ("resnet18", "full", 96), ("transformers", "full", 32)],
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

    step()  # creates the state of the optimizer
    for checkpointing in (False, True):
        assert set_checkpointing(student.backbone, checkpointing)
        total = estimate.total(TILES, checkpointing=checkpointing) - estimate.weights - estimate.optimiser
        assert total == pytest.approx(measured_peak(step), rel=0.2)


def test_a_frozen_backbone_keeps_no_activations() -> None:
    module = timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY)
    module.requires_grad_(False)
    student = Student(module, StudentConfig(), dim=32, n_classes=3, joint_dim=8).train()
    assert count_activations(student, [module.patch_embed, *module.blocks]) == [0, 0, 0]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_blocks_before_the_first_adapter_keep_no_activations(checkpointing: bool) -> None:
    module = timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY)
    parts = [module.patch_embed, *module.blocks]
    adapted = add_lora(module, LoraConfig(rank=2, targets=("blocks.1.attn.qkv",))).train()
    set_checkpointing(adapted, checkpointing)
    before, first, second = count_activations(adapted, parts)
    assert (before, first) == (0, 0) and second > 0


def count_activations(model: nn.Module, parts: list[nn.Module]) -> list[int]:
    """Number of inputs and intermediate outputs of each part that autograd keeps alive after the forward pass."""
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


def make_estimate(supported: bool = True) -> MemoryEstimate:
    """Return an estimate with 100 bytes of weights and 10 bytes per tile, or 2 with checkpointing."""
    unit = np.ones(1)
    checkpointed = Activations(20 * unit, 2 * unit) if supported else None
    return MemoryEstimate(100, 10, 20, 10, Activations(0 * unit, 10 * unit), checkpointed)


@pytest.mark.parametrize(
    ("keys", "free", "expected"),
    [
        ({}, 900, (False, 1, 760)),  # 100 + 20 + 64 x 10
        ({}, 800, (True, 1, 268)),  # 760 exceeds nine tenths of 800, so checkpoint: 100 + 20 + 20 + 64 x 2
        ({"gradient_checkpointing": "always"}, 900, (True, 1, 268)),
        ({"gradient_checkpointing": "never", "accumulation": "auto"}, 800, (False, 2, 450)),  # plus gradients
        ({"accumulation": "auto"}, 800, (False, 2, 450)),
        ({"accumulation": "auto"}, 200, (True, 5, 176)),  # without checkpointing, at most 3 tiles would fit
        ({"accumulation": 4}, 400, (False, 4, 290)),
    ],
)
def test_checkpointing_and_micro_batches_are_chosen_to_fit(
    configure: MakeConfig, keys: dict[str, object], free: int, expected: tuple[bool, int, int]
) -> None:
    config = configure({"training.tiles_per_step": 64, **{f"training.{key}": value for key, value in keys.items()}})
    plan = choose_memory_plan(config, make_estimate(), free)
    assert (plan.checkpointing, plan.micro_batches, plan.needed) == expected


def test_several_processes_divide_the_tiles_and_exchange_gradients(configure: MakeConfig) -> None:
    plan = choose_memory_plan(configure({"training.tiles_per_step": 64}), make_estimate(), 900, processes=2)
    assert plan.needed == 100 + 20 + 10 + 32 * 10


def test_the_error_for_a_batch_that_does_not_fit_gives_numbers_and_alternatives(configure: MakeConfig) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_memory_plan(configure({"training.tiles_per_step": 64}), make_estimate(supported=False), 400)
    message = str(caught.value)
    assert "64 tiles needs 760 bytes" in message and "only 360 bytes can be used" in message
    for alternative in (
        "accumulation=3 (needs 350",
        "tiles_per_step=16 (needs 280",
        "set training.gradient_checkpointing to",
    ):
        assert alternative in message


def test_a_batch_that_does_not_fit_is_only_a_warning_if_keys_are_explicit(configure: MakeConfig) -> None:
    keys = {"training.tiles_per_step": 64, "training.gradient_checkpointing": "never"}
    plan = choose_memory_plan(configure(keys), make_estimate(), 400)
    assert (plan.checkpointing, plan.micro_batches, plan.needed, plan.fits) == (False, 1, 760, False)
    (warning,) = plan.notes
    assert warning.startswith("warning: a step of 64 tiles needs 760 bytes")
    for alternative in (
        "gradient_checkpointing=auto (needs 268",
        "accumulation=3 (needs 350",
        "tiles_per_step=16 (needs 280",
    ):
        assert alternative in warning
    with pytest.raises(ConfigError, match="64 tiles"):
        choose_memory_plan(configure(keys | {"training.accumulation": "auto"}), make_estimate(), 120)


def test_checkpointing_without_benefit_is_not_used_and_noted(
    configure: MakeConfig,
) -> None:
    keys = {"training.tiles_per_step": 64, "training.gradient_checkpointing": "always"}
    useless = replace(make_estimate(), checkpointed=make_estimate().plain)
    plan = choose_memory_plan(configure(keys), useless, 10_000)
    assert not plan.checkpointing and "saves no memory" in plan.notes[0]
    plan = choose_memory_plan(configure(keys | {"backbone.tuning": "frozen"}), make_estimate(), 10_000)
    assert not plan.checkpointing and "tuning=frozen" in plan.notes[0]
    with pytest.raises(ConfigError) as caught:
        choose_memory_plan(configure({"training.tiles_per_step": 64}), useless, 400)
    assert "with gradient checkpointing" not in str(caught.value)


def test_prefetched_tiles_and_reserved_memory_are_counted(configure: MakeConfig) -> None:
    plan = choose_memory_plan(
        configure({"training.tiles_per_step": 64}), make_estimate(), 10**6, reserved=1000, pixels=4
    )
    assert plan.needed == 760 + 1000 + 5 * 64 * 3 * 4 * 4 and "cached and prefetched tiles" in plan.message
    assert bytes_ahead(2**29) == 2**29 + 2**30 and bytes_ahead(2**31) == 2 * 2**31


def test_the_estimate_does_not_depend_on_tiles_in_the_cache(
    configure: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_plan, "estimate_memory", lambda *_, **__: make_estimate())
    student = Student(nn.Identity(), StudentConfig(), dim=4, n_classes=3, joint_dim=8)
    plans = []
    for cached in (0, 600):  # in the second run of a process, the cache takes 600 bytes of the free memory
        monkeypatch.setattr(memory_plan, "device_memory", lambda _, cached=cached: 10**6 - cached)
        plans.append(memory_plan.plan_memory(configure(), student, lambda pixels: pixels, 8, 1000, cached))
    assert plans[0].facts() == plans[1].facts() and plans[0].free == plans[1].free


def test_the_memory_cache_counts_all_bytes_it_will_hold(configure: MakeConfig) -> None:
    tiles = Workspace(configure()).all_tiles

    def geometry(image: object) -> np.ndarray:
        return np.zeros((3, 8, 8), dtype=np.uint8)

    source = PixelSource(tiles, geometry, "auto")
    count, tile_bytes = len(tiles), 3 * 8 * 8
    assert source.cache_bytes(8) == (count * tile_bytes, 0) and source.cache_bytes(8, reads=2) == (2 * tile_bytes, 0)
    source.batch(np.arange(1))
    assert source.cache_bytes(8) == (count * tile_bytes, tile_bytes)
    assert source.cache_bytes(8, reads=2) == (2 * tile_bytes, 0), "reads may be of tiles that are not in the cache"
    assert PixelSource(tiles, geometry, "none").cache_bytes(8) == (0, 0)
    assert PixelSource(tiles, geometry, "auto").cache_bytes(10**6) == (0, 0)


def test_all_but_tiny_students_are_estimated_with_fake_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    student, normalise = student_of("embedded", "lora", 32)
    real = estimate_memory(student, normalise, 32)
    kinds: list[bool] = []
    student.backbone.register_forward_pre_hook(lambda _, inputs: kinds.append(isinstance(inputs[0], FakeTensor)))
    monkeypatch.setattr(memory, "_TRIVIAL", (0, 0))
    monkeypatch.setattr(memory, "_cache", {})
    fake = estimate_memory(student, normalise, 32, checkpointing=False)
    assert kinds and all(kinds)
    assert fake.total(8) == real.total(8) and fake.weights == real.weights

    student.backbone.register_forward_pre_hook(lambda _, inputs: float(inputs[0].sum()) and None)  # needs values
    monkeypatch.setattr(memory, "_cache", {})
    assert estimate_memory(student, normalise, 32, checkpointing=False).total(8) == real.total(8)
    assert not kinds[-1]


@pytest.mark.parametrize(("own", "other"), [("", None), (None, "")])
def test_out_of_memory_in_one_process_stops_all_processes(
    own: str | None, other: str | None, configure: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def estimate(*_: object, **__: object) -> MemoryEstimate:
        if own is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return make_estimate()

    gathered: list[object] = []
    monkeypatch.setattr(memory_plan, "get_processes", lambda: Processes(0, 2, torch.device("cpu")))
    monkeypatch.setattr(Processes, "gather", lambda _, value: gathered.append(value) or [value, other])
    monkeypatch.setattr(memory_plan, "estimate_memory", estimate)
    with pytest.raises(ConfigError, match="too little memory for even two tiles"):
        student = Student(nn.Identity(), StudentConfig(), dim=4, n_classes=3, joint_dim=8)
        memory_plan.plan_memory(configure(), student, lambda pixels: pixels, 8)
    assert gathered == [own]


def test_the_error_for_weights_that_do_not_fit_gives_other_alternatives(configure: MakeConfig) -> None:
    config = configure({"backbone.tuning": "full"})
    with pytest.raises(ConfigError, match=r"frozen.*; or a smaller backbone .*; or a device with more memory"):
        choose_memory_plan(config, make_estimate(), 100)


def test_terms_that_need_the_whole_batch_prevent_micro_batches(configure: MakeConfig) -> None:
    keys = {"bags.weight": 1.0, "pairing.k": 5, "training.tiles_per_step": 64, "training.accumulation": "auto"}
    assert choose_memory_plan(configure(keys), make_estimate(), 800).checkpointing
    with pytest.raises(ConfigError, match="64 tiles"):
        choose_memory_plan(configure(keys), make_estimate(supported=False), 800)


def test_requesting_unsupported_checkpointing_is_an_error(configure: MakeConfig) -> None:
    config = configure({"training.gradient_checkpointing": "always"})
    with pytest.raises(ModelError, match="does not support gradient checkpointing"):
        choose_memory_plan(config, make_estimate(supported=False), 10_000)


def test_training_that_does_not_fit_stops_before_any_work(
    configure: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_plan, "device_memory", lambda device: 1000)
    config = configure({}, name="too-large")
    with pytest.raises(ConfigError, match=r"(?s)tiles needs .*training\.tiles_per_step"):
        train_run(config)
    assert not (run_folder(config) / "checkpoints").exists()
    assert not any(run_folder(config).parents[1].parent.glob("text_store-*"))


def test_the_doctor_estimates_without_weights(configure: MakeConfig) -> None:
    check = check_training_memory(configure({"training.tiles_per_step": 8}), 10**12)
    assert check.status == "PASS" and "training memory: " in check.message and "8 images of" in check.message
    check = check_training_memory(configure({"training.tiles_per_step": 8}), 1000)
    assert check.status == "FAIL" and "8 tiles needs" in check.message and "backbone.tuning=frozen" in check.fix
    check = check_training_memory(
        configure({"training.tiles_per_step": 8, "training.gradient_checkpointing": "never"}), 1000
    )
    assert check.status == "WARN" and "may run out of memory" in check.message


def test_the_doctor_warns_if_it_cannot_estimate(configure: MakeConfig) -> None:
    check = check_training_memory(configure({"backbone.name": "no_such_model"}), 10**12)
    assert check.status == "WARN" and "no_such_model" in check.message


def test_the_weights_of_a_vlm_are_counted_once(tmp_path: Path) -> None:
    for name, size in (("model.safetensors", 300), ("pytorch_model.bin", 310), ("config.json", 9)):
        (tmp_path / name).write_bytes(b"0" * size)
    assert vlm_weight_bytes(VLMConfig(name=f"clip:{tmp_path}")) == 310
    assert vlm_weight_bytes(VLMConfig(name="conch", path=str(tmp_path / "config.json"))) == 9
    assert vlm_weight_bytes(VLMConfig(name="embedded")) == 0


def test_memory_limits_of_control_groups_are_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < device_memory(torch.device("cpu")) < 1e14
    monkeypatch.setattr("os.getpid", lambda: 7)
    contents = {"proc/7/cgroup": "3:cpu,memory:/job\n0::/outer/inner\n"}
    folder = "sys/fs/cgroup/memory/job"
    contents |= {f"{folder}/memory.limit_in_bytes": "900", f"{folder}/memory.usage_in_bytes": "500"}
    contents |= {f"{folder}/memory.stat": "cache 70\ntotal_inactive_file 50\n"}
    folder = "sys/fs/cgroup/outer"
    contents |= {f"{folder}/memory.max": "1000", f"{folder}/memory.current": "400"}
    contents |= {f"{folder}/memory.stat": "anon 300\ninactive_file 60\n"}
    contents |= {f"{folder}/inner/memory.max": "max", f"{folder}/inner/memory.current": "400"}
    for name, text in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert sorted(_cgroup_memory(tmp_path)) == [450, 660]
    assert list(_cgroup_memory(tmp_path / "none")) == []


def test_automatic_precision_without_a_gpu_is_full_precision(configure: MakeConfig) -> None:
    config = configure()
    assert config.training.precision == "auto"
    assert resolve_precision(config).training.precision == "no"
    assert resolve_precision(configure({"training.precision": "bf16"})).training.precision == "bf16"


def test_automatic_precision_follows_a_run_started_on_another_machine(configure: MakeConfig) -> None:
    config, explicit = configure({}, name="elsewhere"), configure({"training.precision": "no"}, name="elsewhere")
    folder = run_folder(config)
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"keys": {"training.precision": "bf16"}}')
    # The run has not started, so its folder will be overwritten.
    assert resolve_run_precision(config).training.precision == "no"
    (folder / "results.json").write_text("{}")
    assert resolve_run_precision(config).training.precision == "bf16"
    assert resolve_run_precision(explicit).training.precision == "no"
    (folder / "run.json").write_text('{"keys": {"training.precision": "no"}}')
    assert resolve_run_precision(config).training.precision == "no"


def test_processes_on_different_devices_use_the_smallest_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    processes, log_lines = Processes(0, 2, torch.device("cpu")), capture_log()
    for devices, smallest in ((("cpu", 100), ("cpu", 100)), 50), ((("cuda:0", 80), ("cuda:1", 40)), 40):
        gathered = [(("node", device), free) for device, free in devices]
        monkeypatch.setattr(Processes, "gather", lambda *_, gathered=gathered: gathered)
        assert _smallest_memory(processes) == smallest
    (note,) = log_lines
    assert "different amounts of free memory (80 bytes, 40 bytes" in note


def test_equal_estimates_of_several_runs_are_logged_once(
    configure: MakeConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    free = [10**9, 10**9, 2 * 10**9]
    monkeypatch.setattr(memory_plan, "estimate_memory", lambda *_, **__: make_estimate())
    monkeypatch.setattr(memory_plan, "_smallest_memory", lambda _: free.pop(0))
    monkeypatch.setattr(memory_plan, "_logged", set())
    caplog.set_level("INFO")
    student = Student(nn.Identity(), StudentConfig(), dim=4, n_classes=3, joint_dim=8)
    for expected in (1, 1, 2):
        memory_plan.plan_memory(configure(), student, lambda pixels: pixels, 8)
        assert caplog.text.count("training memory:") == expected
