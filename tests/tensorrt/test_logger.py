"""Loggers print as TensorRT's do, and what clients raise in theirs stops nothing."""

import re

import pytest

import dovetail.tensorrt as trt
from dovetail.tensorrt.logger import Reporter
from tests.tensorrt.coverage import exercises

LINE = r"\[\d\d/\d\d/\d{4}-\d\d:\d\d:\d\d\] \[TRT\] \[%s\] %s\n"
LEVELS = ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"]


@exercises("Logger", "Logger.log", *(f"Logger.{level}" for level in LEVELS))
@pytest.mark.parametrize("least", LEVELS)
def test_a_logger_prints_what_is_grave_enough(capsys, least):
    levels = [getattr(trt.Logger, level) for level in LEVELS]
    logger = trt.Logger(levels[LEVELS.index(least)])
    for level in levels:
        logger.log(level, "text, 100%")
    out = capsys.readouterr().out
    expected = "".join(LINE % (letter, "text, 100%") for letter in "FEWIV"[: LEVELS.index(least) + 1])
    assert re.fullmatch(expected, out)


@exercises("Logger.min_severity", "Logger.Severity")
def test_the_least_severity_is_a_warning_and_can_be_changed(capsys):
    logger = trt.Logger()
    assert logger.min_severity is trt.Logger.WARNING
    logger.log(trt.Logger.Severity.INFO, "hidden")
    logger.min_severity = trt.Logger.Severity.INFO
    logger.log(severity=trt.Logger.INFO, msg="shown")
    assert "hidden" not in (out := capsys.readouterr().out) and out.endswith("[TRT] [I] shown\n")
    assert trt.Logger(min_severity=trt.Logger.ERROR).min_severity is trt.Logger.ERROR
    for wrong in (
        lambda: trt.Logger("INFO"),
        lambda: trt.Logger(3),
        lambda: setattr(logger, "min_severity", 3),
        lambda: logger.log(2, "text"),
    ):
        with pytest.raises(TypeError, match="expected Severity"):
            wrong()


@exercises("ILogger", "ILogger.log", "ILogger.Severity", *(f"ILogger.{level}" for level in LEVELS))
def test_severities_are_on_the_interface_too():
    members = list(trt.ILogger.Severity.__members__.values())
    assert [getattr(trt.ILogger, level) for level in LEVELS] == members == sorted(members)
    assert (
        trt.ILogger.ERROR < trt.ILogger.WARNING <= trt.Logger.WARNING and str(trt.ILogger.VERBOSE) == "Severity.VERBOSE"
    )
    assert trt.ILogger.Severity is trt.Logger.Severity
    with pytest.raises(RuntimeError, match=r'pure virtual function "ILogger::log"'):
        trt.ILogger().log(trt.ILogger.INFO, "text")


class Kept(trt.ILogger):
    """A client's logger, as clients write them."""

    def __init__(self):
        trt.ILogger.__init__(self)
        self.lines = []

    def log(self, severity, msg):
        self.lines.append((severity, msg))


class Recorder(trt.IErrorRecorder):
    """A client's error recorder."""

    def __init__(self):
        super().__init__()
        self.errors = []

    def report_error(self, code, desc):
        self.errors.append((code, desc))
        return False


@exercises("ILogger.__enter__", "ILogger.__exit__")
def test_a_logger_in_a_with_block(capsys):
    with pytest.warns(DeprecationWarning, match="Context managers"), trt.Logger() as logger:
        logger.log(trt.Logger.ERROR, "inside")
    assert "inside" in capsys.readouterr().out
    with pytest.raises(KeyError), pytest.warns(DeprecationWarning), trt.Logger():
        raise KeyError("goes on")


def test_a_reporter_speaks_to_logger_and_recorder():
    logger, recorder = Kept(), Recorder()
    reporter = Reporter(logger, recorder)
    reporter.verbose("v")
    reporter.info("i")
    reporter.warning("w")
    reporter.error("e" * 126 + "é", trt.ErrorCodeTRT.INVALID_ARGUMENT)
    severities = [severity.name for severity, _ in logger.lines]
    assert (
        severities == ["VERBOSE", "INFO", "WARNING", "ERROR"]
        and logger.lines[3][1] == "Error Code 3: " + "e" * 126 + "é"
    )
    assert recorder.errors == [(trt.ErrorCodeTRT.INVALID_ARGUMENT, "e" * 126)]
    with pytest.raises(TypeError, match="logger: got None, expected ILogger"):
        Reporter(None)


def test_what_a_client_raises_is_said_on_stderr(capsys):
    class Broken(trt.ILogger):
        def log(self, severity, msg):
            raise OSError("disk full")

    class BrokenRecorder(trt.IErrorRecorder):
        def report_error(self, code, desc):
            raise OSError("recorder full")

    Reporter(Broken(), BrokenRecorder()).error("text")
    error = capsys.readouterr().err
    assert (
        "Exception caught in log(): disk full" in error and "Exception caught in report_error(): recorder full" in error
    )
