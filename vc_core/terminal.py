"""What every program of the project does on a terminal: its options, an exit status, a sentence for an error, progress
bars."""

import functools
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Annotated, Any

from .configuration import form, words
from .disk import WriteError, write_error
from .errors import UserError, brief, out_of_memory

USERS_ERROR, INTERRUPTED, UNHEARD = 2, 130, 141


def option(hint: Any, help: str, *short: str, shown: str | None = None, name: str | None = None) -> Any:
    """The annotation of a command's parameter, an option of the command line.

    Args:
        hint: its type; of a number with its range.
        help: with the default, where there is one to tell.
        short: further names.
        shown: in the help, in place of the value.
        name: another one than the parameter's.
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
            raise ValueError(f"{brief(texts[0])}: expected {words(hint)}") from None

    return Annotated[
        hint, PrimitiveConstructorSpec(1, form(hint), read, lambda _: True, lambda value: [str(value)]), about
    ]


def argument(hint: Any, help: str, shown: str) -> Any:
    """As `option`, of what has no name before it."""
    from tyro.conf import Positional

    return Positional[option(hint, help, shown=shown)]


def each(hint: Any) -> Any:
    """The type of an option that may be repeated, of what it takes each time."""
    from tyro.conf import UseAppendAction

    return UseAppendAction[tuple[hint, ...]]


def sentence(error: Exception) -> str:
    """What is told of an error that ends a command."""
    if isinstance(error, UserError):
        return str(error)
    if out_of_memory(error):
        return "The memory is not enough: try a smaller size or fewer frames, or end other programs."
    return f"unexpected {type(error).__name__}: {error} (--debug shows where it came from)"


def parsed(program: Callable[..., Any], argv: Sequence[str] | None, prog: str, description: str) -> Callable[[], Any]:
    """A program, a function of its options, with what a command line says; none: this process's.

    Raises:
        SystemExit: of status 2 for what is wrong, which is told in a sentence, and of 0 after `--help`.
    """
    from tyro.conf import DisallowNone

    taken = functools.wraps(program)(functools.partial(functools.partial, program))
    joined: list[str] = []
    for word in sys.argv[1:] if argv is None else argv:
        if joined and joined[-1].startswith("-") and re.match("-[^=]* ", word):  # no option, but what one says
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return parsed_by_tyro(taken, joined, prog, description, config=(DisallowNone,))


def parsed_by_tyro(kind: Any, argv: Sequence[str], prog: str, description: str, **settings: Any) -> Any:
    """`tyro.cli`, whose complaints become a sentence, and its help plain text. Raises as `parsed`."""
    import tyro

    told = io.StringIO()  # neither a terminal nor UTF-8: no colours, and no boxes but rules
    try:
        with redirect_stderr(told), redirect_stdout(told):
            return tyro.cli(kind, prog=prog, description=description, args=argv, **settings)
    except SystemExit as left:
        text = re.sub(" +$", "", told.getvalue(), flags=re.MULTILINE)
        if left.code:
            parts = [" ".join(part.split()).strip(". ") for part in re.split("-{8,}", text)[1:]]
            said = [part for i, part in enumerate(filter(None, parts)) if i == 0 or part.startswith("Perhaps")]
            print(f"vc: {'. '.join(said)} (see {prog} --help)", file=sys.stderr)
            raise
        text = re.sub(r"\n options\n -+\n  -h, --help .*\n(?=\n)", "", text)  # a group of nothing else
        try:
            print(re.sub(r"^( \S.*) options$", r"\1", text, flags=re.MULTILINE).rstrip(), flush=True)
        except BrokenPipeError:
            _mute()
            raise SystemExit(UNHEARD) from None
        raise


debugging = False
"""Whether errors rise that would be told in a sentence: `--debug`."""


def run_program(work: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """Does a program's work and returns its exit status: 2 for what the user can mend, 130 for Ctrl-C, 141 where nobody
    reads its output any more, else its own.

    Warnings and those errors, a disk's among them, become sentences on standard error. Our own mistakes rise.

    Args:
        interrupted: what is said after Ctrl-C.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"vc: {message}", file=sys.stderr)
            status = work() or 0
            _flush()
            return status
    except BrokenPipeError:  # `head` has seen enough
        _mute()
        return UNHEARD
    except KeyboardInterrupt:
        print(f"vc: {interrupted}", file=sys.stderr)
        return INTERRUPTED
    except UserError as error:
        if debugging:
            raise
        print(f"vc: {error}", file=sys.stderr)
        return USERS_ERROR
    except Exception as error:
        told = None if debugging else write_error(error) or (sentence(error) if out_of_memory(error) else None)
        if told is None:
            raise
        with suppress(WriteError):
            _flush()
        print(f"vc: {told}", file=sys.stderr)
        return USERS_ERROR


def _flush() -> None:
    """What was printed goes out while there is still somebody to tell of it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _mute()
        raise write_error(error, "the standard output") from error


def _mute() -> None:
    """Standard output that has failed is left alone: Python would try again at its end, and complain."""
    with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


class Bars:
    """A progress bar for each thing that reports, shown only where it takes more than half a second."""

    def __init__(self) -> None:
        self.bars: dict[str, Any] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        from tqdm import tqdm

        bar = self.bars.get(what)
        if bar is None or done < bar.n or bar.total != total:  # it begins anew
            self.finish()
            bar = self.bars[what] = tqdm(desc=what, total=total, delay=0.5, dynamic_ncols=True)
        bar.update(done - bar.n)

    def finish(self) -> None:
        while self.bars:
            self.bars.popitem()[1].close()

    def write(self, line: str) -> None:
        """A line on standard output, where no bar is under way."""
        self.finish()
        print(line, flush=True)

    def tell(self, line: str) -> None:
        """A line on standard error, where what is no result goes."""
        self.finish()
        print(f"vc: {line}", file=sys.stderr, flush=True)


@contextmanager
def progress_bars() -> Iterator[Bars]:
    bars = Bars()
    try:
        yield bars
    finally:
        bars.finish()
