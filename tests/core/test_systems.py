"""The code runs on Linux, macOS and Windows, and the GitHub workflow tests it on all of them."""

import ast
import re

import yaml

# Modules, and attributes of modules, that Python has only on some systems.
OF_SOME_SYSTEMS = {
    *("fcntl", "grp", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty", "msvcrt", "winreg", "winsound"),
    *(f"os.{name}" for name in (
        "chown", "fork", "getgid", "getpgid", "getuid", "geteuid", "killpg", "mkfifo", "nice", "posix_fadvise",
        "sched_getaffinity", "sched_setaffinity", "setpgid", "setsid", "startfile", "sysconf", "uname", "wait3",
    )),
    *(f"signal.{name}" for name in (
        "SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGUSR1", "SIGUSR2", "alarm",
        "pause", "pthread_kill", "pthread_sigmask", "setitimer", "sigwait",
    )),
}  # fmt: skip


def asks_for_the_system(node) -> bool:
    if isinstance(node, ast.Try):
        return any(handler.type and ast.unparse(handler.type) == "ImportError" for handler in node.handlers)
    if isinstance(node, ast.If | ast.IfExp):
        return any(question in ast.unparse(node.test) for question in ("hasattr(", "os.name", "sys.platform"))
    return False


def unguarded(tree):
    """Yield the names in OF_SOME_SYSTEMS that code uses without a check of the system."""
    for node in ast.iter_child_nodes(tree):
        if asks_for_the_system(node):
            continue
        if isinstance(node, ast.Import):
            yield from OF_SOME_SYSTEMS.intersection(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from OF_SOME_SYSTEMS.intersection([node.module, *(f"{node.module}.{a.name}" for a in node.names)])
        elif isinstance(node, ast.Attribute):
            yield from OF_SOME_SYSTEMS.intersection([ast.unparse(node)])
        yield from unguarded(node)


def test_all_runs_on_every_system(repository):
    """All but ./vc; on Windows `python -m vc_core` replaces it."""
    rooms = ("vc_core", "training", "nodes", "workflows", "locales", "launcher", "benchmarks")
    files = [repository / "__init__.py", *(file for room in rooms for file in (repository / room).rglob("*.py"))]
    assert len(files) > 150
    used = {file: set(unguarded(ast.parse(file.read_text(encoding="utf-8")))) for file in files}
    assert not {file: names for file, names in used.items() if names}


def test_the_workflow_tests_every_system_and_python(repository):
    """From the oldest Python that pip accepts; with the libraries that ./vc installs, from existing files."""
    text = (repository / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    job = yaml.safe_load(text)["jobs"]["test"]
    matrix = job["strategy"]["matrix"]
    assert matrix["system"] == ["ubuntu-latest", "macos-latest", "windows-latest"]
    project = (repository / "pyproject.toml").read_text(encoding="utf-8")
    (oldest,) = re.findall(r'requires-python = ">=3\.(\d+)"', project)
    assert matrix["python"] == [f"3.{minor}" for minor in range(int(oldest), 14)]
    commands = " ".join(step.get("run", "") for step in job["steps"])
    files = re.findall(r"[\w-]+\.txt", commands)
    assert len(files) == 3 and all((repository / file).is_file() for file in files)
    assert "./vc test" in commands and "python -m vc_core test" in commands
