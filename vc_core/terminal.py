"""Command line basics of all programs of the project: options, exit statuses, error messages, progress bars."""

import functools
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from itertools import takewhile
from typing import Annotated, Any

from .configuration import form, words
from .disk import WriteError, write_error
from .errors import UserError, brief, nearest, out_of_memory

USERS_ERROR, INTERRUPTED, BROKEN_PIPE = 2, 130, 141


def option(hint: Any, help: str, *short: str, shown: str | None = None, name: str | None = None) -> Any:
    """Return the annotation that turns a parameter of a command into an option of the command line.

    Args:
        hint: the type; for a number with its range.
        help: the help text, with the default if there is one.
        short: further names of the option.
        shown: placeholder of the value in the help.
        name: the option's name, if it is not the parameter's.
    """
    import pydantic
    from tyro.conf import FlagCreatePairsOff, arg
    from tyro.constructors import PrimitiveConstructorSpec

    about = arg(name=name, metavar=shown, help=help, aliases=short or None, help_behavior_hint="", prefix_name=False)
    if hint is bool:
        hint = FlagCreatePairsOff[bool]
    if form(hint) in ("NAME", ""):
        return Annotated[hint, about]

    def read(texts: list[str]) -> Any:
        try:
            return pydantic.TypeAdapter(hint).validate_python(texts[0])
        except ValueError:
            raise ValueError(f"Expected {words(hint)}, got {brief(texts[0])}") from None

    return Annotated[
        hint, PrimitiveConstructorSpec(1, form(hint), read, lambda _: True, lambda value: [str(value)]), about
    ]


def argument(hint: Any, help: str, shown: str) -> Any:
    """Return the annotation of a positional argument, see `option`."""
    from tyro.conf import Positional

    return Positional[option(hint, help, shown=shown)]


def each(hint: Any) -> Any:
    """Return the type of an option that can be repeated; `hint` is the type of one value."""
    from tyro.conf import UseAppendAction

    return UseAppendAction[tuple[hint, ...]]


def sentence(error: Exception) -> str:
    """Return the message for an error that ends a command."""
    if isinstance(error, UserError):
        return str(error)
    if out_of_memory(error):
        return "There is not enough memory. Choose a smaller size or fewer frames, or close other programs."
    text = f"{type(error).__name__}: {error}".rstrip(".: ")
    return f"Unexpected {text}. Run the command with --debug to see the traceback."


def parsed(program: Callable[..., Any], argv: Sequence[str] | None, prog: str, description: str) -> Callable[[], Any]:
    """Parse a command line into the options of `program`; return a function that runs it. `argv` None: sys.argv.

    Raises:
        SystemExit: with status 2 after a message on a wrong command line, with status 0 after `--help`.
    """
    from tyro.conf import DisallowNone

    deferred = functools.wraps(program)(functools.partial(functools.partial, program))
    joined: list[str] = []
    for word in sys.argv[1:] if argv is None else argv:
        # A text that starts with - and has a space is not an option, but the value of the option before it.
        if joined and joined[-1].startswith("-") and re.match("-[^=]* ", word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return parsed_by_tyro(deferred, joined, prog, description, config=(DisallowNone,))


def parsed_by_tyro(kind: Any, argv: Sequence[str], prog: str, description: str, **settings: Any) -> Any:
    """Call `tyro.cli`, but print errors as one line and the help as plain text. Raises as `parsed`."""
    import tyro

    def output(words: Sequence[str]) -> tuple[str, SystemExit | None, Any]:
        """Return what tyro prints, and either how it exits or the parsed command line."""
        printed = io.StringIO()  # not a terminal and not UTF-8: no colours, and lines instead of boxes
        exit = result = None
        try:
            with redirect_stderr(printed), redirect_stdout(printed):
                result = tyro.cli(kind, prog=prog, description=description, args=words, **settings)
        except SystemExit as error:
            exit = error
        return re.sub(" +$", "", printed.getvalue(), flags=re.MULTILINE), exit, result

    text, exit, result = output(argv)
    if exit is None:
        return result
    if exit.code:
        message = wrong_command_line(text, output(["--help"])[0], argv, prog)
        print(f"vc: {message} See ./{prog} --help.", file=sys.stderr)
        raise exit
    text = re.sub(r"\n options\n -+\n  -h, --help .*\n(?=\n)", "", text)  # a group that contains only --help
    try:
        print(re.sub(r"^( \S.*) options$", r"\1", text, flags=re.MULTILINE).rstrip(), flush=True)
    except BrokenPipeError:
        _mute()
        raise SystemExit(BROKEN_PIPE) from None
    raise exit


def wrong_command_line(text: str, help: str, argv: Sequence[str], prog: str) -> str:
    """Return the message about a wrong command line, from what tyro prints about it and the command's `--help`."""
    body = next(part for part in re.split("-{8,}", text)[1:] if part.strip())
    line = " ".join(body.split())
    if line.startswith("Unrecognized options: "):
        return _unknown_word(line.partition(": ")[2], help, argv)
    if line.startswith("Missing from "):
        return _missing(body, help, argv, prog)
    if match := re.match(r"invalid choice '(.*)' for argument '(.*)'\. Expected one of \((.*)\)", line):
        choices, name = re.findall("'(.*?)'", match[3]), match[2] if match[2].startswith("-") else match[2].upper()
        return f"{name} is {match[1]}. Expected one of {', '.join(choices)}.{nearest(match[1], choices)}"
    return next((match.expand(ours) for tyros, ours in _MESSAGES if (match := re.match(tyros, line))), f"{line}.")


_MESSAGES = (
    (r"Missing value for argument '(?:.*/)?(.+?)'", r"\1 has no value. Add one after it."),
    (r"Error parsing (?:\S+/)?(\S+): Expected (.*), got (.*)", r"\1 is \3. Expected \2."),
    (r"Error parsing (?:\S+/)?(\S+): invalid literal for int\(\) .*: '(.*)'", r"\1 is \2. Expected an integer."),
    (r"Error parsing (?:\S+/)?(\S+): could not convert string to float: '(.*)'", r"\1 is \2. Expected a number."),
)
"""Patterns of tyro's messages -> ours."""


def _unknown_word(listed: str, help: str, argv: Sequence[str]) -> str:
    """Return the message about the first word that is neither an option nor its value. `listed` are all such words."""
    word = next((word for word in argv if f"{listed}, ".startswith(f"{' '.join(word.split())}, ")), listed)
    if word.startswith("-"):
        name, names = word.partition("=")[0], re.findall(r"(?<!\S)--([a-zA-Z][-.\w]*)", help)
        return f"Unknown option {brief(name)}.{nearest(name.strip('-'), names, '--{}')}"
    for i, (option, value, third) in enumerate(zip(argv, argv[1:], argv[2:], strict=False)):
        if third == word and option.startswith("-") and not value.startswith("-"):
            text = " ".join(takewhile(lambda part: not part.startswith("-"), argv[i + 1 :]))
            return f"Unexpected word '{brief(word)}'. Put text with spaces in quotes: {option} \"{brief(text)}\"."
    return f"Unexpected word '{brief(word)}'. Put its option in front of it, or remove it."


def _missing(body: str, help: str, argv: Sequence[str], prog: str) -> str:
    """Return the message about missing arguments and options, which tyro lists with their help texts."""
    entries = re.findall(r"^ {6}(?:-\w [^,]+, )?(\S.*)((?:\n {10}.+)*)", body, re.MULTILINE)
    names, about = [name for name, _ in entries], " ".join(entries[0][1].split()).removesuffix(" (required)")
    section = re.search(r"^ positional arguments\n -+\n((?:  .+\n)*)", help, re.MULTILINE)
    places = re.findall(r"^ {2}(\S.*?)(?:  |$)", section[1], re.MULTILINE) if section else []
    others = ["[OPTIONS]"] if any(word.startswith("-") for word in argv) else []
    words = [prog, *places, *(name for name in names if name.startswith("-")), *others]
    return f"Missing: {', '.join([f'{names[0]} ({about})', *names[1:]])}. Expected ./{' '.join(words)}."


debugging = False
"""Whether errors raise instead of being printed as messages: `--debug`."""


def run_program(work: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """Run a program and return its exit status: 2 for an error that the user can fix, 130 for Ctrl-C, 141 if the reader
    of its output has gone, else its own.

    Prints warnings, user errors and disk errors as messages on standard error. Programming errors raise.

    Args:
        interrupted: the message after Ctrl-C.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"vc: {message}", file=sys.stderr)
            status = work() or 0
            _flush()
            return status
    except BrokenPipeError:  # such as `| head`
        _mute()
        return BROKEN_PIPE
    except KeyboardInterrupt:
        print(f"vc: {interrupted}", file=sys.stderr)
        return INTERRUPTED
    except UserError as error:
        if debugging:
            raise
        print(f"vc: {error}", file=sys.stderr)
        return USERS_ERROR
    except Exception as error:
        message = None if debugging else write_error(error) or (sentence(error) if out_of_memory(error) else None)
        if message is None:
            raise
        with suppress(WriteError):
            _flush()
        print(f"vc: {message}", file=sys.stderr)
        return USERS_ERROR


def _flush() -> None:
    """Write what was printed, while an error of it can still be reported."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _mute()
        raise write_error(error, "the standard output") from error


def _mute() -> None:
    """Redirect a failed standard output to nowhere. Python would write to it again at exit, and print an error."""
    with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


class Bars:
    """One progress bar for each kind of work. A bar appears only after half a second."""

    def __init__(self) -> None:
        self.bars: dict[str, Any] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        from tqdm import tqdm

        bar = self.bars.get(what)
        if bar is None or done < bar.n or bar.total != total:  # the work starts again
            self.finish()
            bar = self.bars[what] = tqdm(desc=what, total=total, delay=0.5, dynamic_ncols=True)
        bar.update(done - bar.n)

    def finish(self) -> None:
        while self.bars:
            self.bars.popitem()[1].close()

    def write(self, line: str) -> None:
        """Print a line on standard output; closes the bars first."""
        self.finish()
        print(line, flush=True)

    def note(self, line: str) -> None:
        """Print a line that is not a result on standard error; closes the bars first."""
        self.finish()
        print(f"vc: {line}", file=sys.stderr, flush=True)


@contextmanager
def progress_bars() -> Iterator[Bars]:
    bars = Bars()
    try:
        yield bars
    finally:
        bars.finish()
