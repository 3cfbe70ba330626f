"""Upload a classifier to the Hugging Face Hub: show the files and licences, and ask for confirmation."""

from clipit.config.computing_options import OptionParser
from clipit.config.paths import option_path
from clipit.errors import user_errors


def main() -> None:
    """Run the command."""
    with user_errors():
        parser = OptionParser(description=__doc__)
        parser.add_argument(
            "classifier", type=option_path, metavar="CLASSIFIER", help="folder of a run, or its classifier/ folder"
        )
        parser.add_argument("repository", metavar="REPO", help="repository on the Hub: owner/name")
        parser.add_argument("--private", action="store_true", help="create a private repository")
        parser.add_argument("--yes", action="store_true", help="upload without asking for confirmation")
        parser.add_argument(
            "--i-have-permission",
            action="store_true",
            help="upload even though a licence forbids it, because you have the rights holder's permission",
        )
        options = parser.parse_args()
        from clipit.models.hub import plan_upload, push_classifier

        upload = plan_upload(options.classifier, options.repository, private=options.private)
        print(upload.describe())
        address = push_classifier(upload, accept=lambda: options.yes or _agreed(), permitted=options.i_have_permission)
        print(f'{address}: clipit.load_classifier("{upload.repository}")')


def _agreed() -> bool:
    try:
        return input("Upload these files? Type yes: ").strip().lower() in ("y", "yes")
    except EOFError:  # no terminal
        print()
        return False
