"""`ILogger`, `Logger`, and how the rest of this package speaks to a client's logger and error recorder."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Any, ClassVar

from dovetail.tensorrt import enums
from dovetail.tensorrt.context_manager import Deprecated
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import ErrorCodeTRT, Severity


class ILogger(Deprecated):
    """Where messages go: subclasses define `log(severity, msg)`, which gets every message, grave or not."""

    Severity = enums.Severity
    INTERNAL_ERROR: ClassVar[enums.Severity] = enums.Severity.INTERNAL_ERROR
    ERROR: ClassVar[enums.Severity] = enums.Severity.ERROR
    WARNING: ClassVar[enums.Severity] = enums.Severity.WARNING
    INFO: ClassVar[enums.Severity] = enums.Severity.INFO
    VERBOSE: ClassVar[enums.Severity] = enums.Severity.VERBOSE

    def log(self, severity: enums.Severity, msg: str) -> None:
        """Take one message; subclasses do.

        Raises:
            RuntimeError: a subclass does not define it.
        """
        raise RuntimeError('Tried to call pure virtual function "ILogger::log"')


class Logger(ILogger):
    """Prints messages at least as grave as `min_severity`, on stdout.

    A line reads `[MM/DD/YYYY-HH:MM:SS] [TRT] [W] text`.
    """

    def __init__(self, min_severity: enums.Severity = Severity.WARNING) -> None:
        self._min_severity = expect(Severity, min_severity, "Logger: min_severity")

    @property
    def min_severity(self) -> enums.Severity:
        """The least grave severity that is printed."""
        return self._min_severity

    @min_severity.setter
    def min_severity(self, value: enums.Severity) -> None:
        self._min_severity = expect(Severity, value, "Logger.min_severity")

    def log(self, severity: enums.Severity, msg: str) -> None:
        """Print the message, if it is grave enough."""
        if expect(Severity, severity, "Logger.log: severity") > self._min_severity:
            return
        letter = "F" if severity is Severity.INTERNAL_ERROR else severity.name[0]
        print(f"[{datetime.now():%m/%d/%Y-%H:%M:%S}] [TRT] [{letter}] {msg}", flush=True)  # noqa: T201


class Reporter:
    """Speaks to a client's logger and, of errors, to its error recorder: what builders, parsers and runtimes hold.

    A logger or recorder that raises stops nothing: that is said on stderr.
    """

    def __init__(self, logger: ILogger, recorder: Any = None) -> None:
        self.logger = expect(ILogger, logger, "logger")
        self.recorder = recorder

    def log(self, severity: enums.Severity, message: str) -> None:
        """Log a message."""
        try:
            self.logger.log(severity, message)
        except Exception as error:
            print(f"[ERROR] Exception caught in log(): {error}", file=sys.stderr)  # noqa: T201

    def error(self, message: str, code: ErrorCodeTRT = ErrorCodeTRT.INTERNAL_ERROR) -> None:
        """Log an error and record it under `code`, in as many bytes as a recorder takes."""
        self.log(Severity.ERROR, f"Error Code {code.value}: {message}")
        if self.recorder is None:
            return
        try:
            self.recorder.report_error(code, message.encode()[:127].decode(errors="ignore"))
        except Exception as error:
            print(f"[ERROR] Exception caught in report_error(): {error}", file=sys.stderr)  # noqa: T201

    def warning(self, message: str) -> None:
        """Log a warning."""
        self.log(Severity.WARNING, message)

    def info(self, message: str) -> None:
        """Log what happens."""
        self.log(Severity.INFO, message)

    def verbose(self, message: str) -> None:
        """Log a detail."""
        self.log(Severity.VERBOSE, message)
