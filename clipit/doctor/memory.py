"""Check whether the training of a configuration fits into the memory of this machine."""

from typing import TYPE_CHECKING

from clipit.config.run import RunConfig
from clipit.doctor.checks import Check, failed_check
from clipit.errors import ConfigError, ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn

_CLASSES, _JOINT_DIM = 10, 768  # the heads are small, whatever the data and the VLM


def check_memory(config: RunConfig) -> list[Check]:
    """Estimate the memory of a training, without loading any weights, and compare it with what is free.

    Args:
        config: Run configuration, with or without an arm.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from clipit.distributed import get_processes
    from clipit.free_memory import device_memory
    from clipit.models.backbones import load_backbone
    from clipit.models.student import build_student
    from clipit.training.arms import resolve_arm
    from clipit.training.fitting import choose_fit
    from clipit.training.memory import estimate_memory
    from clipit.training.precision import resolve_precision

    config = resolve_precision(resolve_arm(config))
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
            _place(student, device)
        estimate = estimate_memory(
            student,
            backbone.preprocess.normalise,
            backbone.preprocess.size,
            precision=config.training.precision,
            mode=mode,
        )
    except Exception as error:  # the model is not cached, which is another check, or needs values of its weights
        reason = " ".join(str(error).split())[:120]
        return [Check("PASS", "memory", f"estimated when the training starts, not here ({reason})")]
    try:
        fit = choose_fit(config, estimate, device_memory(device))
    except (ConfigError, ModelError) as error:
        return [failed_check("memory", error)]
    return [Check("PASS", "memory", fit.message)]


def _place(module: "nn.Module", device: "torch.device") -> None:
    """Replace parameters and buffers on the meta device by fake ones of a device, within a `FakeTensorMode`."""
    import torch
    from torch import nn

    placed: dict[int, torch.Tensor] = {}
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, value in tensors.items():
                if value is None:
                    continue
                if id(value) not in placed:
                    blank = torch.empty(value.shape, dtype=value.dtype, device=device)
                    is_weight = isinstance(value, nn.Parameter)
                    placed[id(value)] = nn.Parameter(blank, value.requires_grad) if is_weight else blank
                tensors[name] = placed[id(value)]  # type: ignore[assignment]
