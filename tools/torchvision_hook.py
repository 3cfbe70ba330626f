"""Import hook for a torchvision build that does not match torch (a CUDA wheel with a CPU torch, or the reverse).

Importing such a torchvision fails with "operator torchvision::nms does not exist", and so do timm, open_clip, peft and
the `accelerate` command. The transforms and models of torchvision work once the two missing operator schemas are
declared. Because `accelerate` itself is affected, the hook has to be active before any project code runs: `main` copies
this file into site-packages, with a `.pth` file that imports it when Python starts. The hook runs at the first import
of torchvision, and does nothing if torchvision's own library loads.

`make env` runs `python -m tools.torchvision_hook`, which installs the hook only if a plain `import torchvision` fails
in this way. Elsewhere, install both packages from the same index (docs/faq.md).
"""

import importlib.abc
import importlib.machinery
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def _declare_missing_operators() -> None:
    import torch

    spec = importlib.machinery.PathFinder.find_spec("torchvision")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    for library in sorted(folder.glob("_C*.so")) if folder else []:
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except (OSError, RuntimeError):
            continue
    for name in ("torchvision::nms", "torchvision::qnms"):
        if not torch._C._dispatch_has_kernel(name) and name not in torch._C._dispatch_get_all_op_names():
            torch.library.define(name, _SCHEMA)


class _TorchvisionFinder(importlib.abc.MetaPathFinder):
    """Finder that runs once, before torchvision is imported, and leaves the import to the other finders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Declare the operators before torchvision is found; return None."""
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            _declare_missing_operators()
        return None


def activate() -> None:
    """Install the finder for the first import of torchvision."""
    if "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _TorchvisionFinder())


def _torchvision_error() -> str:
    result = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True, check=False)
    return "" if result.returncode == 0 else result.stderr.strip().splitlines()[-1]


def main() -> int:
    """Install the hook if it is needed; return 0 if torchvision can be imported afterwards."""
    error = _torchvision_error()
    if error and "torchvision::nms" in error:
        site = Path(sysconfig.get_path("purelib"))
        (site / "clipit_site_hook.py").write_text(
            Path(__file__).read_text(encoding="utf-8") + "\n\nactivate()\n", encoding="utf-8"
        )
        (site / "clipit_site_hook.pth").write_text("import clipit_site_hook\n", encoding="utf-8")
        print(f"torchvision and torch are different builds; the missing operators are now declared by a hook in {site}")
        error = _torchvision_error()
    if error:
        print(f"torchvision cannot be imported: {error}", file=sys.stderr)
    return 1 if error else 0


if __name__ == "__main__":
    raise SystemExit(main())
