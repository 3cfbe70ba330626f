"""The doctor finds each problem and says what to do about it; it does not complain about what works."""

import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from clipit.config.file import ConfigFile
from clipit.config.run import BackboneConfig, RunConfig, VLMConfig
from clipit.doctor import machine, model_checks, packages
from clipit.doctor.check_results import Check, CheckGroup, failed_check, format_checks
from clipit.doctor.configs import check_config, check_gpu, check_index
from clipit.doctor.data_checks import check_prompts, check_reports, check_tiles
from clipit.doctor.model_checks import Access, AskHub, check_backbone, check_download, check_hub, check_vlm, is_cached
from clipit.errors import DataError, explain
from clipit.models.backbone_specs import BACKBONES
from clipit.models.vlm_specs import VLMS

MakeConfig = Callable[..., RunConfig]
MakeFile = Callable[..., ConfigFile]
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _ask_the_hub_anew() -> Iterator[None]:
    model_checks.ask_hub.cache_clear()
    yield
    model_checks.ask_hub.cache_clear()


def hub(access: Access) -> AskHub:
    return lambda _: access


def silent(name: str) -> Access:
    raise AssertionError(f"the Hub was asked about {name}")


# Checks -----------------------------------------------------------------------------------------------------------


def test_lines_are_aligned_counted_and_worst_first() -> None:
    groups = [
        CheckGroup("One", [Check("PASS", "a", "well"), Check("FAIL", "longer", "ill " * 60, "do this")]),
        CheckGroup("Two", [Check("WARN", "b", "so so")]),
    ]
    lines = format_checks(groups).splitlines()
    assert lines[0] == "Problems"
    assert lines[1].startswith("  FAIL  longer  ill ill") and lines[2].startswith("                ill")
    assert "                fix: do this" in lines
    assert lines.index("  WARN  b       so so") > lines.index("                fix: do this")
    assert lines[lines.index("One") + 1] == "  PASS  a  well" and "Two" not in lines
    assert lines[-1] == "1 FAIL, 1 WARN, 1 PASS"
    assert max(map(len, lines)) <= 120


def test_colours_only_when_asked_for() -> None:
    groups = [CheckGroup("One", [Check("FAIL", "a", "ill")])]
    assert "\033[" not in format_checks(groups)
    assert "\033[31mFAIL\033[0m" in format_checks(groups, colour=True)


def test_an_error_of_the_package_becomes_a_failed_check() -> None:
    check = failed_check("tiles", DataError(explain("the folder is empty", where="/data", fix="fill it")))
    assert check == Check("FAIL", "tiles", "The folder is empty (/data).", "fill it")
    assert failed_check("x", DataError("CONCH is missing.")).message == "CONCH is missing."


# Machine ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "status"), [((3, 10, 14), "FAIL"), ((3, 11, 0), "PASS"), ((3, 14, 1), "PASS")])
def test_python(version: tuple[int, ...], status: str) -> None:
    assert machine.check_python(version).status == status


@pytest.mark.parametrize(
    ("code", "output", "error", "status", "match"),
    [
        (0, "0.28.0", "", "PASS", "0.28.0"),
        (
            1,
            "",
            "Traceback\nRuntimeError: operator torchvision::nms does not exist",
            "FAIL",
            "https://download.pytorch.org/whl/cpu",
        ),
        (1, "", "ModuleNotFoundError: No module named 'torchvision'", "FAIL", "pip install torch torchvision"),
        (1, "", "", "FAIL", "no message"),
    ],
)
def test_torchvision(
    monkeypatch: pytest.MonkeyPatch, code: int, output: str, error: str, status: str, match: str
) -> None:
    done = SimpleNamespace(returncode=code, stdout=output + "\n", stderr=error)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: done)
    check = machine.check_torchvision()
    assert check.status == status and match in check.message + check.fix


def test_an_imported_torchvision_needs_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    with monkeypatch.context() as patch:
        patch.setattr(machine.subprocess, "run", None)
        check = machine.check_torchvision()
    monkeypatch.delitem(sys.modules, "torchvision")
    assert check == machine.check_torchvision() == Check("PASS", "torchvision", torchvision.__version__)


def test_threads_that_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    (cpu,) = [check for check in machine.check_devices() if check.subject == "CPU"]
    assert cpu.status == "WARN" and cpu.fix == "unset OMP_WAIT_POLICY"
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    (cpu,) = [check for check in machine.check_devices() if check.subject == "CPU"]
    assert cpu.status == "PASS"


def test_gpus_are_listed_and_a_hidden_one_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    facts = {0: SimpleNamespace(name="H200", total_memory=139 * 2**30, major=9)}
    facts[1] = SimpleNamespace(name="T4", total_memory=15 * 2**30, major=7)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", facts.__getitem__)
    found = [check.message for check in machine.check_devices()]
    assert found[:2] == ["H200, 139 GiB, bf16", "T4, 15 GiB, no bf16: use fp16 or fp32"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert (machine.check_devices()[0].status, "nvidia-smi" in machine.check_devices()[0].fix) == ("WARN", True)


@pytest.mark.parametrize(("free", "status"), [(2**29, "FAIL"), (5 * 2**30, "WARN"), (50 * 2**30, "PASS")])
def test_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, status: str) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert machine.check_disk(tmp_path / "not" / "yet").status == status


def test_output_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check = machine.check_disk(tmp_path / "file" / "out")
    assert check.status == "FAIL" and "--output" in check.fix


@pytest.mark.parametrize(
    ("kind", "count", "cpu", "gpus", "status", "match"),
    [
        ("NO", 1, False, 0, "PASS", "1 process, NO, on CPUs"),
        ("MULTI_CPU", 2, True, 0, "WARN", "ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu"),
        ("NO", 2, True, 0, "WARN", "only one process"),
        ("MULTI_GPU", 2, False, 1, "FAIL", "but only 1 GPU is available"),
        ("MULTI_GPU", 2, False, 0, "WARN", "do not communicate"),
        ("MULTI_GPU", 4, False, 2, "FAIL", "num_processes: 2"),
        ("NO", 1, False, 2, "WARN", "leaves 1 of 2 GPUs idle"),
        ("MULTI_GPU", 2, False, 2, "PASS", "2 processes, MULTI_GPU"),
    ],
)
def test_launcher(kind: str, count: int, cpu: bool, gpus: int, status: str, match: str) -> None:
    check = machine.check_launch_file(Path("file"), kind, count, use_cpu=cpu, gpus=gpus)
    assert check.status == status and match in check.message + check.fix


def test_default_file_of_the_launcher_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import accelerate.commands.config.config_args as arguments

    path = tmp_path / "default_config.yaml"
    monkeypatch.setattr(arguments, "default_config_file", str(path))
    assert "no default configuration" in machine.check_default_launch().message
    path.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\n"
    )
    assert machine.check_default_launch().status == "WARN"
    path.write_text("compute_environment: LOCAL_MACHINE\nno_such_key: 1\n")
    check = machine.check_default_launch()
    assert check.status == "FAIL" and str(path) in check.fix


# Packages ---------------------------------------------------------------------------------------------------------


def test_two_faiss_packages_overwrite_each_other() -> None:
    check = packages.check_faiss({"faiss-cpu": "1.15.1", "faiss-gpu": "1.15.1"})
    assert check.status == "FAIL" and "faiss-cpu 1.15.1 and faiss-gpu 1.15.1" in check.message
    assert check.fix == "pip uninstall -y faiss-cpu faiss-gpu && pip install faiss-cpu"


def test_two_faiss_packages_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_has_gpu", lambda: True)
    check = packages.check_faiss({"faiss-cpu": "1.15.1", "faiss-gpu-cuvs": "1.15.1"})
    assert check.fix == "pip uninstall -y faiss-cpu faiss-gpu-cuvs && pip install faiss-gpu-cuvs"


def test_no_faiss_and_a_broken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert packages.check_faiss({}).status == "WARN"
    monkeypatch.setitem(sys.modules, "faiss", None)
    check = packages.check_faiss({"faiss-cpu": "1.15.1"})
    assert check.status == "FAIL" and check.fix == "pip install --force-reinstall --no-deps faiss-cpu"


@pytest.mark.parametrize(
    ("kernel", "flags", "fix"),
    [
        ("Barcelona", {"avx2", "avx512f"}, "export OPENBLAS_CORETYPE=SKYLAKEX"),
        ("Prescott", {"avx2"}, "export OPENBLAS_CORETYPE=Haswell"),
        ("Haswell", {"avx2", "avx512f"}, ""),
        ("SkylakeX", {"avx2", "avx512f"}, ""),
        ("Nehalem", {"sse4_2"}, ""),
    ],
)
def test_openblas_kernel(kernel: str, flags: set[str], fix: str) -> None:
    check = packages.check_kernel(kernel, flags)
    assert check.fix == fix and check.status == ("WARN" if fix else "PASS")


def test_missing_and_old_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["torch>=99", "numpy>=1", "absent-one>=1", 'absent-two>=1; extra == "more"', 'pytest>=1; extra == "dev"']
    monkeypatch.setattr(packages.importlib.metadata, "requires", lambda _: asked)
    check = packages.check_requirements()
    assert check.status == "FAIL" and "torch>=99" in check.message and "absent-one>=1 (absent)" in check.message
    assert "numpy" not in check.message and "absent-two" not in check.message


def test_this_environment_has_what_it_needs() -> None:
    assert packages.check_requirements().status == "PASS"


# Hub --------------------------------------------------------------------------------------------------------------


def test_token_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    printed = format_checks([CheckGroup("Hub", check_hub())])
    assert "present" in printed and "hf_secret" not in printed


def test_a_silent_hub_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    from clipit.models import loading

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(loading, "hub_is_reachable", lambda: False)
    assert check_hub()[0].status == "WARN" and "is unreachable" in check_hub()[0].message
    assert model_checks.ask_hub("a/b") == "unreachable"
    monkeypatch.setattr(loading, "hub_is_reachable", lambda: True)
    assert check_hub()[0].status == "PASS" and "is reachable" in check_hub()[0].message
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert check_hub()[0].status == "PASS" and model_checks.ask_hub("c/d") == "offline"


def test_a_hub_that_nothing_needs_is_no_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    from clipit.models import loading

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(loading, "hub_is_reachable", lambda: False)
    assert [check.status for check in check_hub()] == ["WARN", "WARN"]
    assert [check.status for check in check_hub(needed=False)] == ["PASS", "PASS"]


def test_cached_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert not is_cached("owner/name")
    (snapshot / "model.safetensors").write_text("")
    assert is_cached("owner/name") and is_cached("owner/name@main") and not is_cached("owner/other")


# Models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hub_id"),
    [
        ("hf-hub:wisdomik/QuiltNet-B-32", "wisdomik/QuiltNet-B-32"),
        ("clip:vinid/plip", "vinid/plip"),
        ("plip", "vinid/plip"),
        ("quiltnet-b-32", "wisdomik/QuiltNet-B-32"),
        ("clip-vit-b-32", "timm/vit_base_patch32_clip_224.openai"),
        ("open_clip:ViT-B-32/openai", "timm/vit_base_patch32_clip_224.openai"),
    ],
)
def test_where_a_vlm_comes_from(name: str, hub_id: str) -> None:
    assert model_checks.vlm_hub_id(VLMConfig(name=name), VLMS.get(name)) == hub_id


@pytest.mark.parametrize(
    ("name", "hub_id"),
    [
        ("uni", "MahmoodLab/UNI"),
        ("phikon", "owkin/phikon"),
        ("hf-hub:owner/name", "owner/name"),
        ("transformers:owner/name", "owner/name"),
        ("imagenet-vits16", "timm/vit_small_patch16_224.augreg_in21k_ft_in1k"),
        ("resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
    ],
)
def test_where_a_backbone_comes_from(name: str, hub_id: str) -> None:
    assert model_checks.backbone_hub_id(BackboneConfig(name=name), BACKBONES.get(name)) == hub_id


@pytest.mark.parametrize(
    ("access", "status", "match"),
    [
        ("granted", "PASS", "downloaded on first use"),
        ("gated", "FAIL", "https://huggingface.co/MahmoodLab/UNI, then hf auth login"),
        ("absent", "FAIL", "check the spelling"),
        ("offline", "FAIL", "unset HF_HUB_OFFLINE"),
        ("unreachable", "WARN", "access could not be checked"),
    ],
)
def test_a_gated_model_that_is_not_here(access: Access, status: str, match: str) -> None:
    check = check_download("backbone", "uni", "MahmoodLab/UNI", BACKBONES["uni"], hub(access), "backbone")
    assert check.status == status and match in check.message + check.fix


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (VLMConfig(name="titan"), "cannot pair"),
        (VLMConfig(name="keep"), "set vlm.trust_remote_code"),
        (VLMConfig(name="pathgen-clip-b-16"), "set vlm.path to the file"),
        (VLMConfig(name="/no/such/folder"), "hf-hub:ID (open_clip)"),
        (VLMConfig(name="quilt-b-32"), "similar names: quiltnet-b-32"),
        (VLMConfig(name="plip", path="/no/such/folder"), "vlm.path does not exist"),
        (VLMConfig(name="open_clip:ViT-X/openai"), "one of open_clip's architectures, such as ViT-"),
        (VLMConfig(name="open_clip:ViT-B-32/nothing"), "with a published tag (openai"),
    ],
)
def test_vlms_that_cannot_be_used_as_they_are(config: VLMConfig, match: str) -> None:
    (check,) = check_vlm("VLM", config, hub("granted"))
    assert check.status == "FAIL" and match in check.message + check.fix and check.fix


@pytest.mark.parametrize(
    ("name", "match"), [("uni3", "similar: uni"), ("hibou-l", "set backbone.trust_remote_code"), ("/no", "table")]
)
def test_backbones_that_cannot_be_used_as_they_are(name: str, match: str) -> None:
    (check,) = check_backbone(BackboneConfig(name=name), hub("granted"))
    assert check.status == "FAIL" and match in check.message + check.fix


def test_access_to_the_weights_is_checked_though_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "conch" else find(name))
    package, weights = check_vlm("VLM", VLMConfig(name="conch"), hub("gated"))
    assert (package.status, weights.status) == ("FAIL", "FAIL")
    assert "pip install git+https://github.com/mahmoodlab/CONCH.git" in package.fix
    assert "gated, and this user has no access" in weights.message
    with_path = VLMConfig(name="conch", path="/no/such/folder")
    package, weights = check_vlm("VLM", with_path, hub("gated"))
    assert "needs its own package" in package.message and "does not exist: /no/such/folder" in weights.message


@pytest.mark.parametrize("name", ["", "plip", "quiltnet-b-32"])
def test_an_empty_folder_is_no_vlm(tmp_path: Path, name: str) -> None:
    config = VLMConfig(name=name, path=str(tmp_path)) if name else VLMConfig(name=str(tmp_path))
    (check,) = check_vlm("VLM", config, silent)
    assert check.status == "FAIL" and str(tmp_path) in check.message and check.fix


@pytest.mark.parametrize("name", ["", "uni", "phikon"])
def test_an_empty_folder_is_no_backbone(tmp_path: Path, name: str) -> None:
    config = BackboneConfig(name=name, path=str(tmp_path)) if name else BackboneConfig(name=str(tmp_path))
    (check,) = check_backbone(config, silent)
    assert check.status == "FAIL" and str(tmp_path) in check.message and check.fix


def test_folders_without_weights(configure: MakeConfig, tmp_path: Path) -> None:
    config = configure()
    for name, of in (("vlm", config.vlm.name), ("backbone", config.backbone.name)):
        shutil.copytree(of, tmp_path / name)
        weights = list((tmp_path / name).glob("*.safetensors"))
        assert weights
        for file in weights:
            file.unlink()
    vlm = check_vlm("VLM", VLMConfig(name=str(tmp_path / "vlm")), silent)[0]
    backbone = check_backbone(BackboneConfig(name=str(tmp_path / "backbone")), silent)[0]
    assert vlm.status == "FAIL" and "eights (" in vlm.message
    assert backbone.status == "FAIL" and "No weights" in backbone.message


def test_local_folders_and_embedded_models_need_no_hub(configure: MakeConfig) -> None:
    for config in (configure(), configure(**{"vlm.name": "embedded", "backbone.name": "embedded"})):
        checks = [*check_vlm("VLM", config.vlm, silent), *check_backbone(config.backbone, silent)]
        assert [check.status for check in checks] == ["PASS", "PASS"]


# Configurations ---------------------------------------------------------------------------------------------------


def test_a_whole_configuration(configure_file: MakeFile) -> None:
    checks = check_config(configure_file(), [], Path("small.yaml"), silent)
    assert {check.status for check in checks} == {"PASS"}
    assert [check.subject for check in checks] == ["VLM", "backbone", "tiles", "reports", "prompts"]
    assert "72 train, 24 validation, 24 test" in checks[2].message


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"tiles.path": "/nowhere/tiles.csv"}, "tiles"),
        ({"reports.path": "/nowhere/reports.jsonl"}, "reports"),
        ({"reports.text_column": "words"}, "reports"),
        ({"prompts": "/nowhere/prompts.yaml"}, "prompts"),
        (
            {"reports.morphology_prompts": "/nowhere/a.yaml", "reports.boilerplate_prompts": "/b.yaml"},
            "morphology prompts",
        ),
    ],
)
def test_data_that_are_not_in_place(configure: MakeConfig, keys: dict[str, Any], what: str) -> None:
    config = configure(keys)
    checks = [*check_tiles("tiles", config.tiles), *check_reports(config), *check_prompts(config)]
    failed = [check for check in checks if check.status == "FAIL"]
    assert what in [check.subject for check in failed]
    assert all(check.fix for check in failed)


def test_a_published_set_that_is_not_there(configure: MakeConfig, tmp_path: Path) -> None:
    config = configure(**{"tiles.source": "pcam", "tiles.path": str(tmp_path)})
    (check,) = check_tiles("tiles", config.tiles)
    assert check.status == "FAIL" and "zenodo.org/records/2546921" in check.fix
    assert "clipit download pcam --to data/pcam" in check.fix


def test_problems_of_reports_are_counted(configure: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Colon.\n\n\n")
    columns = {f"reports.{name}_column": None for name in ("id", "organ", "group", "label", "date")}
    (check,) = check_reports(configure(**{"reports.path": str(tmp_path / "a.txt"), **columns}))
    assert check.message.endswith(
        "1 report with text; 2 problems, first: " + str(tmp_path / "a.txt") + ", line 2: empty report"
    )


def test_own_reports_are_joined_if_an_arm_uses_them(configure_file: MakeFile, tmp_path: Path) -> None:
    rows = [f'{{"id": "{i}", "text": "A tumour.", "patient": "train-{i}", "finding": "tumour"}}' for i in range(4)]
    reports = tmp_path / "own.jsonl"
    reports.write_text("\n".join(rows), encoding="utf-8")
    keys = {"reports.path": str(reports), "reports.group_column": "patient", "reports.organ_column": None}

    def own(arms: list[str]) -> list[Check]:
        file = configure_file({**keys, "comparison.arms": arms, "comparison.baseline": arms[0]})
        return [c for c in check_config(file, [], Path("own.yaml"), silent) if c.subject == "patients' own reports"]

    assert own(["image_only", "clip_it_all"]) == []
    for arm in ("own_label", "own_snippet"):
        (check,) = own(["image_only", arm])
        assert check.status == "PASS" and check.message.startswith("4 of 18 training patients have a report of their")
    reports.write_text("\n".join(rows).replace("train-", "P"), encoding="utf-8")
    (check,) = own(["image_only", "own_case"])
    assert check.status == "FAIL" and check.message.startswith("No training patient has a report; the tile groups are")


def test_reports_of_tcga_that_are_not_there(configure: MakeConfig) -> None:
    (check,) = check_reports(configure(**{"reports.path": "/nowhere/TCGA_Reports.csv", "reports.format": "tcga"}))
    assert check.status == "FAIL"
    assert "data_cards/tcga_reports.md" in check.fix and "github.com/tatonetti-lab" in check.fix


@pytest.mark.parametrize(
    ("gpu", "precision", "needs", "match"),
    [
        (0, "bf16", "", "No GPU is available"),
        (0, "fp16", "a GPU", "No GPU"),
        (0, "no", "a GPU and 20 minutes", "the configuration needs a GPU and 20 minutes"),
        (0, "no", "2 cores", ""),
        (7, "bf16", "a GPU", "This GPU only emulates"),
        (7, "fp16", "a GPU", ""),
        (9, "bf16", "a GPU", ""),
    ],
)
def test_a_gpu_that_is_asked_for(
    configure: MakeConfig, monkeypatch: pytest.MonkeyPatch, gpu: int, precision: str, needs: str, match: str
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu > 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=gpu))
    checks = check_gpu(configure(**{"training.precision": precision}), needs)
    assert [check.status for check in checks] == ["WARN"] * bool(match)
    assert match in "".join(check.message for check in checks)


def test_an_approximate_index_needs_faiss(configure: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(**{"pairing.index": "HNSW32", "reports": {"path": "reports.csv"}})
    monkeypatch.setattr("clipit.stores.index.has_faiss", lambda: True)
    assert [check.status for check in check_index(config)] == ["PASS"]
    monkeypatch.setattr("clipit.stores.index.has_faiss", lambda: False)
    (check,) = check_index(config)
    assert check.status == "FAIL" and "HNSW32 needs faiss" in check.message
    assert not check_index(configure())


def test_every_data_set_and_backbone_of_a_comparison_is_looked_at(configure_file: MakeFile) -> None:
    file = configure_file(
        {
            "comparison.arms": ["image_only"],
            "comparison.backbones": ["embedded", "uni"],
            "comparison.data_sets": {"own": {}, "other": {"tiles.source": "bach", "tiles.path": "/nowhere/bach"}},
        }
    )
    checks = check_config(file, [], Path("compare.yaml"), hub("gated"))
    assert sorted((check.subject, check.status) for check in checks) == [
        ("VLM", "PASS"), ("backbone", "FAIL"), ("backbone", "PASS"), ("prompts", "PASS"), ("reports", "PASS"),
        ("tiles", "FAIL"), ("tiles", "PASS"),
    ]  # fmt: skip
    assert any("/nowhere/bach" in check.message for check in checks)


def test_what_an_earlier_command_writes(
    configure_file: MakeFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    file = configure_file(
        **{"tiles.path": "outputs/w/tiles.csv", "reports.path": "outputs/w/r.jsonl", "vlm.name": "outputs/w/vlm"}
    )
    (tmp_path / "own.yaml").write_text("# command   python scripts/other.py --now\nname: a\n")
    checks = check_config(file, [], tmp_path / "own.yaml", silent)
    (data,) = [check for check in checks if check.status == "FAIL"]
    assert "outputs/w/tiles.csv, outputs/w/vlm, outputs/w/r.jsonl" in data.message
    assert data.fix == "run first: python scripts/other.py --now"
    (tmp_path / "own.yaml").write_text("# command   make worlds\nname: a\n")
    checks = check_config(file, [], tmp_path / "own.yaml", silent)
    assert {check.status for check in checks} == {"PASS"}


def test_a_data_set_of_the_hub_is_not_downloaded(configure: MakeConfig) -> None:
    (check,) = check_tiles("tiles", configure(**{"tiles.source": "huggingface", "tiles.path": "hf:owner/set"}).tiles)
    assert check.status == "WARN" and "downloaded on first use" in check.fix
    (check,) = check_reports(configure(**{"reports.path": "hf:owner/set"}))
    assert check.status == "WARN" and "downloaded on first use" in check.fix


def test_a_missing_folder_is_not_taken_for_a_data_set_on_the_hub(configure: MakeConfig) -> None:
    keys = {"tiles.source": "huggingface", "tiles.path": "dta/tiles", "reports.path": "dta/reports"}
    for check in (*check_tiles("tiles", configure(**keys).tiles), *check_reports(configure(**keys))):
        assert check.status == "FAIL" and "hf:owner/name" in check.fix


def test_the_script(
    write_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_config({"tiles.path": "/nowhere/tiles.csv"}))
    status = {}
    for name, arguments in {"one": ["--config", path], "wrong": ["--lora.rank=8"], "models": ["--models"]}.items():
        monkeypatch.setattr(sys, "argv", ["doctor.py", *arguments])
        try:
            runpy.run_path(str(ROOT / "scripts" / "doctor.py"), run_name="__main__")
        except SystemExit as end:
            status[name] = end.code
    shown = capsys.readouterr()
    assert (int(status["one"]), status["wrong"]) == (1, 2) and "models" not in status
    assert "FAIL  tiles" in shown.out and "PASS  VLM" in shown.out and "\033[" not in shown.out
    assert "configuration keys need --config" in shown.err
    announced = [line for line in shown.err.splitlines() if line.endswith(" ...")]
    assert announced[0] == "starting ..." and announced[-1] == "checking the Hugging Face Hub ..."
    assert f"checking {path}: its models, tiles, reports and prompts ..." in announced and "checking" not in shown.out
    assert "MahmoodLab/UNI2-h" in shown.out and "quiltnet-b-32" in shown.out


def test_tiles_without_a_training_part_fail(configure: MakeConfig, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("path,label,split\na.png,mucin,test\n")
    tiles = configure(**{"tiles.path": str(tmp_path / "t.csv"), "tiles.images": None}).tiles
    (check,) = check_tiles("tiles", tiles)
    assert check.status == "FAIL" and "no training tiles" in check.message and "tiles.splits" in check.fix
