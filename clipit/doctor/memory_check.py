"""Check whether training with a configuration fits into the memory of this machine."""

from collections.abc import Mapping

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from clipit.config.run import RunConfig
from clipit.distributed import get_processes
from clipit.doctor.check_results import Check, as_sentence, failed_check, merge_checks
from clipit.doctor.model_checks import vlm_weight_bytes
from clipit.errors import ConfigError, ModelError
from clipit.free_memory import device_memory
from clipit.models.backbones import load_backbone
from clipit.models.student import build_student
from clipit.output_files.artifacts import fingerprint
from clipit.training.auto_precision import resolve_precision
from clipit.training.memory_estimate import MemoryEstimate, estimate_memory
from clipit.training.memory_plan import choose_memory_plan, views_per_tile
from clipit.training.terms.term_table import uses_vlm

_CLASSES, _JOINT_DIM = 10, 768  # assumed sizes of the heads, which hardly affect the memory


def check_memory_of_arms(configs: Mapping[str, RunConfig]) -> list[Check]:
    """Check the memory of each arm; arms with the same student, keys of training and VLMs are checked once.

    Args:
        configs: Name of an arm -> its configuration, with the arm resolved.
    """
    free = device_memory(get_processes().device)
    sections = {"backbone", "lora", "student", "training", "vlm", "second_vlm"}
    checks: dict[str, Check] = {}
    checks_of: dict[str, list[Check]] = {}
    for name, config in configs.items():
        key = fingerprint([config.model_dump(mode="json", include=sections), views_per_tile(config), uses_vlm(config)])
        if key not in checks:
            checks[key] = check_memory(config, free)
        checks_of[name] = [checks[key]]
    return merge_checks(checks_of)


def check_memory(config: RunConfig, free: int) -> Check:
    """Estimate the memory needed for training, without loading weights, and compare it with the free memory in bytes.

    Args:
        config: Run configuration, with its arm resolved.
    """
    config = resolve_precision(config)
    try:
        estimate, size = _estimate(config)
    except Exception as error:  # the model is unknown, not cached, or cannot be built without its weights
        reason = failed_check("", error).message[:200]
        fix = "correct the backbone if its own check fails; the estimate is repeated when training starts"
        return Check("WARN", "memory", f"The memory needed for training could not be estimated: {reason}", fix)
    vlms = [vlm for vlm in (config.vlm, config.second_vlm) if vlm is not None and uses_vlm(config)]
    reserved = sum(map(vlm_weight_bytes, vlms))  # VLMs stay in memory during training
    try:
        plan = choose_memory_plan(config, estimate, free, reserved=reserved, pixels=size)
    except (ConfigError, ModelError) as error:
        return failed_check("memory", error)
    notes = ". ".join(note.partition(": ")[2] for note in plan.notes)
    if not plan.fits:
        return Check("WARN", "memory", as_sentence(notes))
    return Check("PASS", "memory", ". ".join(filter(None, [plan.message, notes])))


def _estimate(config: RunConfig) -> tuple[MemoryEstimate, int]:
    """Estimate the memory of the student from tensors without values; also return the edge of its input in pixels."""
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
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # fake tensors cannot be assigned in place
    try:
        with mode:
            student.to_empty(device=get_processes().device)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
    preprocess, precision = backbone.preprocess, config.training.precision
    estimate = estimate_memory(student, preprocess.normalise, preprocess.size, precision=precision, mode=mode)
    return estimate, preprocess.size
