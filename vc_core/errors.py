"""The one exception that speaks to users, and words for it."""


class UserError(Exception):
    """An error that the user can mend.

    Its message is one sentence that names the file, socket or key, what was expected and what to do. The command
    line prints it without a traceback and exits with status 2; a ComfyUI node shows it as it is.
    """

    # What programs show of it: its public place, not that of the folder it was imported from.
    __module__ = "vc_core"


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its noun: `1 image`, `3 images`. `many` is the plural where it is not the singular with an s."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"
