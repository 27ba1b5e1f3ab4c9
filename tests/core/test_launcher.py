"""The launcher ./vc: the folders it works from, the arguments it passes on, its set-up and its error messages.

The launcher runs as a copy in a folder with a space in its name. Scripts replace Python, so that nothing is downloaded
and the tests are fast.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="./vc needs bash: on Windows it is python -m vc_core")

# An environment's Python: prints its arguments and its working folder.
FAKE_ENVIRONMENT = """#!/bin/sh
case $1 in
    */missing_packages.py) printf '%s\\n' "${FAKE_MISSING-}"; exit ;;
esac
printf 'cwd=%s\\n' "$PWD"
printf 'path=%s\\n' "$PYTHONPATH"
printf 'arg=%s\\n' "$@"
exit "${FAKE_STATUS-0}"
"""

# A Python that creates environments, replaces pip and the libraries in them, and logs what to install.
FAKE_PYTHON = """#!/bin/sh
case $* in
    *ensurepip*) exit 0 ;;
    *version_info*) echo 'python 3.11' ;;
    '-m venv --clear '*) mkdir -p "$4/bin" "$4/packages" && cp "$0" "$4/bin/python"; echo venv >>"$FAKE_LOG" ;;
    '-m pip --version') exit 0 ;;
    '-m pip install'*) echo "pip $*" >>"$FAKE_LOG"; exit "${FAKE_PIP_STATUS-0}" ;;
    *sysconfig*) echo "${0%/bin/python}/packages" ;;
    *'import torchvision'*)
        [ -n "${FAKE_CPU_TORCH-}" ] || exit 0
        [ "$1" = -S ] || [ ! -f "${0%/bin/python}/packages/_torchvision_schemas.pth" ] || exit 0
        echo 'RuntimeError: operator torchvision::nms does not exist' >&2; exit 1 ;;
    -V) echo 'Python 3.11.0' ;;
    *) echo "ran $*" ;;
esac
"""


def write_script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def project(tmp_path, repository) -> Path:
    """A copy of the launcher and of the files it reads, in a folder with a space in its name."""
    root = tmp_path / "a path with spaces" / "vc clone"
    shutil.copytree(repository / "launcher", root / "launcher", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("vc", "requirements.txt", "requirements-dev.txt", "constraints.txt"):
        shutil.copy(repository / name, root / name)
    return root


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    """A working folder that is not the project's."""
    folder = tmp_path / "some where else"
    folder.mkdir()
    return folder


@pytest.fixture
def call(project, elsewhere, tmp_path):
    """Runs the project's ./vc from elsewhere, in the environment of FAKE_ENVIRONMENT."""
    fake = write_script(tmp_path / "fake env" / "bin" / "python", FAKE_ENVIRONMENT)

    def run(*arguments, launcher=project / "vc", **variables):
        environment = {**os.environ, "PYTHONPATH": "", "VC_PYTHON": str(fake), **variables}
        command = [str(launcher), *arguments]
        return subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=60)

    return run


@pytest.fixture
def set_up(project, elsewhere, tmp_path):
    """Runs the project's ./vc with FAKE_PYTHON as the only Python; returns the run and the log of installations."""
    log = tmp_path / "log"
    write_script(tmp_path / "bin" / "python3", FAKE_PYTHON)
    for tool in ("bash", "cat", "cksum", "cp", "dirname", "env", "flock", "mkdir", "mv", "readlink", "rm", "sh"):
        if path := shutil.which(tool):
            (tmp_path / "bin" / tool).symlink_to(path)

    def run(*arguments, **variables):
        log.write_text("")
        environment = {"PATH": str(tmp_path / "bin"), "FAKE_LOG": str(log), **variables}
        command = [str(project / "vc"), *arguments]
        done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=60)
        return done, log.read_text()

    return run


def reported(output: str, field: str) -> list[str]:
    return re.findall(rf"^{field}=(.*)$", output, flags=re.MULTILINE)


def is_one_line(text: str) -> bool:
    return text.startswith("vc: ") and text.count("\n") == 1 and text.endswith(".\n") and "Traceback" not in text


# --- Passing arguments on -------------------------------------------------------------------------------------------


def test_arguments_and_exit_status_pass_through_from_the_users_folder(call, project, elsewhere):
    done = call("compose", "--text", "a red ball; $HOME *", "", "-o", "my out.mp4", FAKE_STATUS="7")
    assert done.returncode == 7
    expected = ["-m", "vc_core", "compose", "--text", "a red ball; $HOME *", "", "-o", "my out.mp4"]
    assert reported(done.stdout, "arg") == expected
    assert reported(done.stdout, "cwd") == [str(elsewhere)]
    assert reported(done.stdout, "path") == [str(project)]
    assert done.stderr == ""


def test_works_through_a_chain_of_relative_links(call, project, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "direct").symlink_to(os.path.relpath(project / "vc", tmp_path / "links"))
    (tmp_path / "videocomposer").symlink_to("links/direct")
    done = call("info", launcher=tmp_path / "videocomposer")
    assert reported(done.stdout, "path") == [str(project)], done.stderr


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_needs_no_environment(call, project, arguments):
    done = call(*arguments, VC_PYTHON="")
    assert done.returncode == 0 and "./vc demo" in done.stdout
    assert not (project / ".venv").exists()


# --- The user's own environment -------------------------------------------------------------------------------------


def test_a_vc_python_that_does_not_exist_is_named(call, project):
    done = call("info", VC_PYTHON="/no/such/python")
    assert done.returncode == 2 and is_one_line(done.stderr) and "VC_PYTHON is /no/such/python" in done.stderr
    assert not (project / ".venv").exists()


def test_packages_that_the_users_environment_lacks_are_named(call):
    done = call("info", FAKE_MISSING="av, einops")
    assert done.returncode == 2 and is_one_line(done.stderr) and "lacks av, einops" in done.stderr
    assert done.stdout == ""


def test_vc_python_may_be_a_folder(call, tmp_path):
    assert reported(call("info", VC_PYTHON=str(tmp_path / "fake env")).stdout, "arg") == ["-m", "vc_core", "info"]


def test_missing_packages_are_those_of_the_requirements_file(repository, tmp_path):
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("# pytest-is-no-such\npytest>=8  # comment\nno-such-distribution-x>=1,<2\n\n")
    script = repository / "launcher" / "missing_packages.py"
    done = subprocess.run([sys.executable, script, requirements], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "no-such-distribution-x")


# --- The set-up -----------------------------------------------------------------------------------------------------


def test_sets_up_once(set_up, project):
    done, log = set_up("info", "x")
    assert done.returncode == 0, done.stderr
    assert log.splitlines()[0] == "venv" and log.count("pip -m pip install") == 1
    for name in ("constraints.txt", "requirements.txt", "requirements-dev.txt"):
        assert str(project / name) in log
    assert "GB" in done.stderr  # the size of the download
    assert done.stdout == "ran -m vc_core info x\n"  # without output of the set-up

    done, log = set_up("info", "x")
    assert (done.returncode, done.stdout, done.stderr, log) == (0, "ran -m vc_core info x\n", "", "")


def test_an_interrupted_set_up_is_repeated(set_up, project):
    done, _ = set_up("info", FAKE_PIP_STATUS="1")
    assert done.returncode == 2 and done.stdout == "" and "Run ./vc again" in done.stderr
    done, log = set_up("info")
    assert done.returncode == 0 and "venv" not in log.split() and "pip -m pip install" in log
    (project / ".venv" / "bin" / "python").unlink()
    done, log = set_up("info")
    assert done.returncode == 0 and log.splitlines()[0] == "venv"


def test_an_environment_that_the_user_cannot_change_is_reported(set_up, project):
    set_up("info")
    stamp = project / ".venv" / "vc-setup.stamp"
    stamp.unlink()
    (stamp / "stays").mkdir(parents=True)  # not even root can remove a folder by `rm -f`
    done, log = set_up("info")
    assert (done.returncode, done.stdout, log) == (2, "", "") and is_one_line(done.stderr)
    assert f"{stamp.parent} is out of date, and you cannot write there" in done.stderr


def test_changed_requirements_are_installed(set_up, project):
    set_up("info")
    with open(project / "requirements.txt", "a") as file:
        file.write("another-package\n")
    assert "pip -m pip install" in set_up("info")[1]
    assert set_up("info")[1] == ""


def test_the_torchvision_declarations_are_added_only_for_a_cpu_build_of_torch(set_up, project):
    placed = project / ".venv" / "packages" / "_torchvision_schemas.pth"
    done, _ = set_up("info")
    assert done.returncode == 0 and not placed.exists()
    (project / ".venv" / "vc-setup.stamp").unlink()
    done, _ = set_up("info", FAKE_CPU_TORCH="1")
    assert done.returncode == 0 and placed.exists() and placed.with_suffix(".py").exists()
    (project / ".venv" / "vc-setup.stamp").unlink()
    done, _ = set_up("info")
    assert done.returncode == 0 and not placed.exists()


def test_without_python_there_is_a_message(set_up, project, tmp_path):
    write_script(tmp_path / "bin" / "python3", "#!/bin/sh\nexit 1\n")
    done, _ = set_up("demo")
    assert done.returncode == 2 and is_one_line(done.stderr) and "no Python 3.10 or later" in done.stderr
    assert not (project / ".venv").exists()


# --- The packages of the set-up -------------------------------------------------------------------------------------


def packages_in(path: Path) -> list[str]:
    return re.findall(r"^[A-Za-z0-9][A-Za-z0-9._-]*", path.read_text(), flags=re.MULTILINE)


def test_requirements_leave_a_comfyui_environments_torch_alone(repository):
    assert not {"torch", "torchvision", "torchaudio"} & set(packages_in(repository / "requirements.txt"))
    # Every stock ComfyUI 0.3.64 has these packages: the nodes need no additional package.
    stock = {"av", "einops", "kornia", "numpy", "pillow", "pydantic", "safetensors", "tqdm"}
    assert {name.lower() for name in packages_in(repository / "requirements.txt")} <= stock
    assert "==" not in (repository / "requirements.txt").read_text()


def test_every_required_package_is_pinned(repository):
    pins = (repository / "constraints.txt").read_text()
    for package in packages_in(repository / "requirements.txt") + packages_in(repository / "requirements-dev.txt"):
        assert re.search(rf"^{re.escape(package)}==\S+", pins, flags=re.MULTILINE), package


FAKE_TORCHVISION = {
    "__init__.py": "from . import extension\nfrom . import _meta_registrations\n",
    "extension.py": "import os, torch\ndef _has_ops(): return bool(os.environ.get('FAKE_HAS_OPS'))\n",
    "_meta_registrations.py": "",
}


@pytest.mark.parametrize(("has_ops", "declared"), [("", True), ("1", False)])
def test_torchvision_schemas_are_declared_when_its_extension_did_not_load(repository, tmp_path, has_ops, declared):
    for name, text in FAKE_TORCHVISION.items():
        write_script(tmp_path / "torchvision" / name, text)
    code = """
import sys
import _torchvision_schemas
print("torch" in sys.modules)
import torch
torch.version.cuda = None
import torchvision
print(hasattr(torch.ops.torchvision, "nms"), hasattr(torch.ops.torchvision, "qnms"))
"""
    importable = os.pathsep.join([str(tmp_path), str(repository / "launcher")])
    environment = {**os.environ, "PYTHONPATH": importable, "FAKE_HAS_OPS": has_ops}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["False", str(declared), str(declared)], done.stderr
