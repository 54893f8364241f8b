"""The one kind of error that is the user's to mend."""


class UserError(ValueError):
    """A mistake in what the user gave: a configuration, a file, a label or a shape.

    The message is one line: the option or file, what was received, what was expected and how to mend it. The
    command line prints it without a traceback and ends with exit status 2.
    """


class NonFiniteLossError(RuntimeError):
    """The training loss became NaN or infinite; the last good checkpoint is kept."""
