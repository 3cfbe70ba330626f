"""Export a classifier to ONNX or torch.export, and compare the logits of the exported and the original model."""

from clipit.config.computing_options import OptionParser
from clipit.config.paths import option_path
from clipit.errors import user_errors


def main() -> None:
    """Run the command."""
    with user_errors():
        parser = OptionParser(description=__doc__)
        parser.add_argument(
            "classifier",
            metavar="CLASSIFIER",
            help="folder of a run, its classifier/ folder, or a repository on the Hub",
        )
        parser.add_argument("--format", choices=("onnx", "torch_export"), default="onnx", help="default: onnx")
        parser.add_argument(
            "--out", type=option_path, required=True, metavar="FILE", help="file to write: .onnx or .pt2"
        )
        parser.add_argument(
            "--tolerance",
            type=float,
            metavar="SHARE",
            help="largest allowed logit difference, relative to the largest logit (default: 0.0001)",
        )
        parser.add_argument(
            "--trust-remote-code", action="store_true", help="allow the backbone to run Python code from its repository"
        )
        options = parser.parse_args()
        from clipit.api.sharing import export_program

        exported = export_program(
            options.classifier,
            options.out,
            options.format,
            tolerance=options.tolerance,
            trust_remote_code=options.trust_remote_code,
        )
        differences = ", ".join(f"{name} {value:.2g}" for name, value in exported.differences.items())
        print(f"{exported.path}: classes and preprocessing in {exported.description}")
        print(f"largest logit difference: {differences} (limit {exported.allowed:.2g})")
