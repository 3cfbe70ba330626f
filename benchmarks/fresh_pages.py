"""Time of a step on small tiles with `keep_freed_memory` relative to one without it, each in a separate process."""

from benchmarks.harness import Measurement, Options, alternate, ratios, run_python

_PROGRAM = """
import sys, time
import torch
from clipit.config.run import BackboneConfig, LoraConfig, StudentConfig
from clipit.free_memory import keep_freed_memory
from clipit.models.backbones import load_backbone
from clipit.models.student import build_student

if sys.argv[1] == "kept":
    keep_freed_memory()
torch.set_num_threads(1)
backbone = load_backbone(BackboneConfig(name="embedded"))
student = build_student(
    backbone, StudentConfig(projector_layers=0), LoraConfig(), "lora", n_classes=8, joint_dim=None
).train()
side, steps = backbone.preprocess.size, int(sys.argv[2])
pixels = backbone.preprocess.normalise(torch.randint(0, 256, (64, 3, side, side), dtype=torch.uint8))

def step():
    student(pixels).logits.square().mean().backward()

step()
start = time.perf_counter()
for _ in range(steps):
    step()
print(time.perf_counter() - start)
"""


def measure(options: Options) -> list[Measurement]:
    """Measure training steps of the bundled backbone on 64 tiles with one thread, relative to the default malloc.

    The ratio is 1 if the C library is not glibc.
    """
    steps = options.size(30, 1)
    workloads = {
        name: (lambda n=name: float(run_python(["-c", _PROGRAM, n, str(steps)]))) for name in ("kept", "returned")
    }
    samples = alternate(workloads, options)
    facts = {"steps": steps, "seconds_per_step": {name: min(times) / steps for name, times in samples.items()}}
    values = ratios(samples, "kept", "returned")
    return [Measurement("fresh_pages", "step with kept memory: time", values, "", None, False, samples, facts)]
