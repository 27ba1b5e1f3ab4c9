"""The one exception that speaks to users."""


class UserError(Exception):
    """An error that the user can mend.

    Its message is one sentence that names the file, socket or key, what was expected and what to do. The command
    line prints it without a traceback and exits with status 2; a ComfyUI node shows it as it is.
    """

    # What programs show of it: its public place, not that of the folder it was imported from.
    __module__ = "vc_core"
