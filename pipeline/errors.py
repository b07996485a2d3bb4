"""The package's own exceptions: each carries a message for a user and says how the program ends (its exit code).

    SlackwaterError                 1   whatever is not a bug; printed without a stack trace
    ├── ConfigError                 2   wrong input; nothing was measured
    │   └── StoreError              2   the MLflow store cannot be reached, written or understood
    ├── MachineError                2   the machine refused something
    ├── EngineError                 1   a server did not do what a trial needs; that trial is failed
    │   ├── EngineUnusableError     2   no server of this engine can run here; the sweep ends
    │   └── PromptTooLongError      1   the prompt does not fit into the server's context
    ├── MeterError                  1   a meter or the sampler could not be read; that trial is failed
    └── BugError                    1   a bug inside a trial; that trial is failed, its folder has the traceback

A message has up to three parts: what was seen, what was expected, what to do. A room may refine one of these for its
own use; what it lets out is one of them. Nothing else lives here but `innermost`, which reads a library's error.
"""


class SlackwaterError(Exception):
    """Base of every error that is not a bug; printed without a stack trace."""

    exit_code = 1


class ConfigError(SlackwaterError):
    """Wrong input: names the key, the value, what was expected and what to do. Nothing was measured."""

    exit_code = 2


class MachineError(SlackwaterError):
    """The machine refused something: a full disk, a missing right, a program that does not answer."""

    exit_code = 2


class StoreError(ConfigError):
    """The MLflow store cannot be reached, written or understood."""


class EngineError(SlackwaterError):
    """A server did not do what a trial needs; the trial is recorded as failed with this message."""


class EngineUnusableError(EngineError):
    """This machine cannot run the engine at all, in one line with the remedy: every further trial would end alike."""

    exit_code = 2


class PromptTooLongError(EngineError):
    """The server counts more prompt tokens than its context holds (found at the first load)."""


class MeterError(SlackwaterError):
    """A meter could not be read or its sampler ended; the trial is recorded as failed with this message."""


class BugError(SlackwaterError):
    """Something inside a trial that nobody foresaw; the trial is recorded as failed, traceback.txt says where."""


def innermost(error: BaseException) -> str:
    """What happened at last, in its own words: libraries for HTTP wrap an error in several of theirs."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error) or type(error).__name__
