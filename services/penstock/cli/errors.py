"""What a person is told when a command cannot do its work: what is wrong, and what to do."""


class CliError(Exception):
    """One fault of the command line, the environment or the machine.

    Attributes:
        message: What is wrong, in a line or a few.
        remedy: What to do about it; "" where the message says so.
        code: Exit status of the process.
    """

    def __init__(self, message: str, *, remedy: str = "", code: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.code = code


BAD_USAGE = 2
"""Exit status for a wrong argument, as the shell's own tools have it."""
