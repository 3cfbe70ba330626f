"""Check whether training with a configuration fits into the memory of this machine."""

from dataclasses import replace
from typing import TYPE_CHECKING

from clipit.config.run import RunConfig
from clipit.doctor.check_results import Check, failed_check
from clipit.doctor.model_checks import vlm_weight_bytes
from clipit.errors import ConfigError, ModelError, shortlist
from clipit.output_files.artifacts import fingerprint

if TYPE_CHECKING:
    import torch
    from torch import nn

    from clipit.config.file import ConfigFile

_CLASSES, _JOINT_DIM = 10, 768  # assumed sizes of the heads, which hardly affect the memory


def check_memory_of_runs(file: "ConfigFile", needs: str = "") -> list[Check]:
    """Check the memory of a run, or of every arm of a comparison on each of its data sets and backbones.

    Arms with the same student, batch and VLMs are checked once. If results differ, each result lists its arms.

    Args:
        file: Configuration file without missing keys.
        needs: See `check_memory`.
    """
    from clipit.comparison.plan import plan_comparison
    from clipit.training.arms import resolve_arm

    if "comparison" not in file.model_fields_set:
        return check_memory(file.run, needs)
    try:
        plans = plan_comparison(file.run, file.comparison)
    except ConfigError as error:
        return [failed_check("keys", error)]
    configs: dict[str, RunConfig] = {}
    arms_of: dict[str, list[str]] = {}
    for plan in plans:
        suffix = f" ({plan.data_set}, {plan.backbone})" if len(plans) > 1 else ""
        for arm in plan.arms:
            config = resolve_arm(plan.run_config(arm, file.comparison.seeds[0]))
            key = _memory_key(config)
            configs.setdefault(key, config)
            arms_of.setdefault(key, []).append(f"{arm}{suffix}")
    arms_with: dict[Check, list[str]] = {}
    for key, config in configs.items():
        for check in check_memory(config, needs):
            arms_with.setdefault(check, []).extend(arms_of[key])
    if len(arms_with) == 1:
        return list(arms_with)
    return [replace(check, subject=f"{check.subject}, {shortlist(arms, 3)}") for check, arms in arms_with.items()]


def _memory_key(config: RunConfig) -> str:
    """Return the fingerprint of the keys that determine the memory needed for training."""
    from clipit.training.memory_plan import views_per_tile
    from clipit.training.terms.term_table import uses_vlm

    student = config.model_dump(mode="json", include={"backbone", "lora", "student"})
    batch = {"tiles_per_step", "accumulation", "gradient_checkpointing", "precision"}
    vlms = [config.vlm, config.second_vlm] if uses_vlm(config) else []
    loaded = [vlm.model_dump(mode="json") for vlm in vlms if vlm is not None]
    training = config.training.model_dump(mode="json", include=batch)
    return fingerprint([student, training, views_per_tile(config), loaded])


def check_memory(config: RunConfig, needs: str = "") -> list[Check]:
    """Estimate the memory needed for training, without loading weights, and compare it with the free memory.

    Args:
        config: Run configuration, with or without an arm.
        needs: Entry `needs` of the file's header comment. If it asks for a GPU and there is none, insufficient memory
            is only a warning.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from clipit.distributed import get_processes
    from clipit.free_memory import device_memory
    from clipit.models.backbones import load_backbone
    from clipit.models.student import build_student
    from clipit.training.arms import resolve_arm
    from clipit.training.auto_precision import resolve_precision
    from clipit.training.config_checks import check_keys
    from clipit.training.memory_estimate import estimate_memory
    from clipit.training.memory_plan import choose_memory_plan
    from clipit.training.terms.term_table import uses_vlm

    try:
        config = resolve_precision(resolve_arm(config))
        check_keys(config)
    except ConfigError as error:
        return [failed_check("keys", error)]
    device, mode = get_processes().device, FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            backbone = load_backbone(config.backbone, weights=False)
            student = build_student(
                backbone,
                config.student,
                config.lora,
                config.backbone.tuning,
                n_classes=_CLASSES,
                joint_dim=_JOINT_DIM if config.student.projector_layers else None,
            )
        with mode:
            _replace_meta(student, device)
        estimate = estimate_memory(
            student,
            backbone.preprocess.normalise,
            backbone.preprocess.size,
            precision=config.training.precision,
            mode=mode,
        )
    except Exception as error:  # the model is unknown, not cached, or cannot be built without its weights
        text = str(error).partition("\n  fix: ")[0].replace("\n  where: ", ": ")
        reason = " ".join(text.split())[:200]
        fix = "correct the backbone if its own check fails; the estimate is repeated when training starts"
        return [Check("WARN", "memory", f"The memory needed for training could not be estimated: {reason}.", fix)]
    vlms = [vlm for vlm in (config.vlm, config.second_vlm) if vlm is not None and uses_vlm(config)]
    reserved = sum(map(vlm_weight_bytes, vlms))  # VLMs stay in memory during training
    size = backbone.preprocess.size
    try:
        plan = choose_memory_plan(config, estimate, device_memory(device), reserved=reserved, pixels=size)
    except (ConfigError, ModelError) as error:
        failed = failed_check("memory", error)
        lacks_gpu = "a GPU" in needs and device.type == "cpu" and isinstance(error, ConfigError)
        return [replace(failed, status="WARN") if lacks_gpu else failed]
    notes = ". ".join(note.partition(": ")[2] for note in plan.notes)
    if not plan.fits:
        return [Check("WARN", "memory", f"{notes[:1].upper()}{notes[1:]}.")]
    return [Check("PASS", "memory", ". ".join(filter(None, [plan.message, notes])))]


def _replace_meta(module: "nn.Module", device: "torch.device") -> None:
    """Replace parameters and buffers on the meta device with fake ones on a device, within a `FakeTensorMode`."""
    import torch
    from torch import nn

    replacements: dict[int, torch.Tensor] = {}
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, value in tensors.items():
                if value is None:
                    continue
                if id(value) not in replacements:
                    blank = torch.empty(value.shape, dtype=value.dtype, device=device)
                    is_weight = isinstance(value, nn.Parameter)
                    replacements[id(value)] = nn.Parameter(blank, value.requires_grad) if is_weight else blank
                tensors[name] = replacements[id(value)]  # type: ignore[assignment]
