"""Every exception that r1-rerank raises, in one tree.

    R1RerankError
    ├── InputError (ValueError)          an argument that cannot be used; `argument` names it
    │   ├── InputTypeError (TypeError)   an argument of the wrong type
    │   ├── TemplateError                a prompt template without its placeholders
    │   └── DataError                    a line of a data file that cannot be read; `path`, `line`
    ├── CheckpointError                  weights, adapter or ranker card missing or not usable
    ├── MissingExtraError (ImportError)  an optional dependency is not installed; `extra`
    └── EngineError                      the model or its server failed on a request
        ├── ContextOverflowError         the prompt is longer than the model's context
        ├── OutOfMemoryError             even a batch of one does not fit
        ├── DeadlineError                the answer took longer than its request allows
        └── EngineClosedError            the engine was closed

A malformed completion is no exception: it is data, and appears in the result's `faults`.
"""

from __future__ import annotations


class R1RerankError(Exception):
    """Base of every error in this package."""


class InputError(R1RerankError, ValueError):
    """An argument that cannot be used, found before any model runs.

    Args:
        argument: Name of the argument at fault.
        message: What is wrong and how to mend it.
    """

    def __init__(self, argument: str, message: str) -> None:
        super().__init__(f"{argument}: {message}")
        self.argument = argument


class InputTypeError(InputError, TypeError):
    """An argument of the wrong type."""


class TemplateError(InputError):
    """A prompt template that lacks a placeholder or has one that nobody fills."""


class DataError(InputError):
    """A line of a data file that cannot be read.

    Args:
        path: File at fault, `-` for standard input.
        line: Line number from 1, or None where the whole file is at fault.
        message: What is wrong and how to mend it.
    """

    def __init__(self, path: str, line: int | None, message: str) -> None:
        super().__init__(path if line is None else f"{path}, line {line}", message)
        self.path = path
        self.line = line


class CheckpointError(R1RerankError):
    """Weights, an adapter or a ranker card that is missing or cannot be used."""


class MissingExtraError(R1RerankError, ImportError):
    """An optional dependency that is not installed.

    Args:
        extra: Name of the extra that brings it.
        missing: Module that could not be imported.
    """

    def __init__(self, extra: str, missing: str) -> None:
        super().__init__(f'{missing} is not installed: pip install "r1-rerank[{extra}]"')
        self.extra = extra
        self.name = missing


class EngineError(R1RerankError):
    """The model, or the server that runs it, failed on a request."""


class ContextOverflowError(EngineError):
    """A prompt that is longer than the model's context."""


class OutOfMemoryError(EngineError):
    """Even a batch of one does not fit into memory."""


class DeadlineError(EngineError):
    """An answer that took longer than its request allows."""


class EngineClosedError(EngineError):
    """The engine was closed before or during the request."""
