"""What ends a run with one line: a mistake of the user's, and a file that cannot be written."""

from __future__ import annotations

from buzz.words import one_line


class ConfigError(Exception):
    """A config, a file or a value that cannot be used, told in one line.

    The command line prints it as `error: <where>: <what>, <what is allowed>` and exits with status 2, so everything
    a user can get wrong is raised as a ConfigError, before a model is loaded.

    Args:
        where: the key (`model.dtype`), file or method at fault.
        what: what is wrong with it.
        allowed: what may stand there instead; left out of the line if empty.
    """

    def __init__(self, where: str, what: str, allowed: str = "") -> None:
        # All three go to Exception, so that the error survives pickling and copying.
        super().__init__(where, what, allowed)
        self.where, self.what, self.allowed = where, what, allowed

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}" + (f", {self.allowed}" if self.allowed else "")
        return one_line(line)  # user text and parser messages may hold newlines


class WriteError(Exception):
    """A file of the results cannot be written: the disk is full, say. What is finished is kept.

    The command lines print it as one line and exit with status 1: the same command goes on once there is room.

    Args:
        path: of the file.
        reason: the system's words, such as "No space left on device".
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        line = f"{self.path} cannot be written ({self.reason}); what is finished is kept, and the same command goes on"
        return one_line(line)
