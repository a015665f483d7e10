"""A command line taken apart: which flags there are, in which order, with which values."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from dovetail.core.errors import UsageError
from dovetail.tensorrt.trtexec.flags import FLAGS, SHORT

T = TypeVar("T")


class Words:
    """The flags of a command line under their newest names; `notes` are warnings about them.

    Raises:
        UsageError: flags that are unknown, refused, lack a value or come twice, all of them in one message.
    """

    def __init__(self, arguments: Sequence[str], major: int) -> None:
        self.notes: list[str] = []
        self._found: list[tuple[str, str]] = []
        errors = []
        unknown = []
        for word in arguments:
            given, equals, value = word.partition("=")
            flag = FLAGS.get(SHORT.get(given, given))
            if flag is None:
                unknown.append(word if not given.startswith("-") else given)
                continue
            if flag.refused:
                errors.append(f"{given}: {flag.refused}")
                continue
            if flag.value and not value:
                errors.append(f"{given}: expected a value: {flag.name}=<{flag.value}>")
                continue
            self._note(given, flag.name, major)
            if equals and not flag.value:
                self.notes.append(f"{given} takes no value: {value!r} is ignored.")
            self._found.append((flag.alias or flag.name, value))
        names = [name for name, _ in self._found]
        errors += [f"{n}: got it twice, expected once" for n in dict.fromkeys(names) if _once(n) and len(set(self.all(n))) > 1]
        if unknown:
            errors.insert(0, "Unknown option: " + ", ".join(_with_nearest(name) for name in dict.fromkeys(unknown)))
        if errors:
            raise UsageError("; ".join(errors))

    def _note(self, given: str, name: str, major: int) -> None:
        flag = FLAGS[name]
        if flag.ignored:
            self.notes.append(f"{given} does nothing: {flag.ignored}.")
        elif flag.until < min(major, 11):
            self.notes.append(f"{given} ended with TensorRT {flag.until}; it is taken as it was.")
        elif major >= 11 and given in ("--useCudaGraph", "--noDataTransfers", "--useSpinWait", "--separateProfileRun", "--stronglyTyped"):
            self.notes.append(f"{given} does nothing: it is how TensorRT 11 runs by default.")
        if flag.alias and not given.startswith(("--vc", "--pi", "--staticPlugins")):
            self.notes.append(f"{given} flag has been deprecated, use {flag.alias} flag instead.")

    def has(self, name: str) -> bool:
        """Whether a flag is there."""
        return any(found == name for found, _ in self._found)

    def all(self, name: str) -> list[str]:
        """The values of a flag."""
        return [value for found, value in self._found if found == name]

    def ordered(self, *names: str) -> Iterator[tuple[str, str]]:
        """These flags with their values, in the order of the command line."""
        return ((name, value) for name, value in self._found if name in names)

    def text(self, name: str) -> str:
        """The value of a flag; empty where it is not there."""
        return next(iter(self.all(name)), "")

    def choice(self, name: str, known: Mapping[str, T], default: T, lower: bool = False) -> T:
        """One of the values that a flag may have.

        Raises:
            UsageError: another value.
        """
        text = self.text(name)
        if not text:
            return default
        if (key := text.lower() if lower else text) not in known:
            raise UsageError(f"{name}: got {text!r}, expected one of {', '.join(known)}")
        return known[key]

    def whole(self, name: str, default: int, least: int, most: int | None = None) -> int:
        """A whole number.

        Raises:
            UsageError: none, or one out of range.
        """
        text = self.text(name)
        return self.number(name, text, least, most) if text else default

    def number(self, name: str, text: str, least: int, most: int | None = None) -> int:
        """A whole number, of a value at hand.

        Raises:
            UsageError: none, or one out of range.
        """
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least or (most is not None and number > most):
            allowed = f"of at least {least}" if most is None else f"from {least} to {most}"
            raise UsageError(f"{name}: got {text!r}, expected a whole number {allowed}")
        return number

    def real(self, name: str, default: float, least: float) -> float:
        """A number.

        Raises:
            UsageError: none, or one that is too small.
        """
        text = self.text(name)
        if not text:
            return default
        number = self.fraction(name, text)
        if not number >= least:
            raise UsageError(f"{name}: got {text!r}, expected a number of at least {least:g}")
        return number

    def fraction(self, name: str, text: str) -> float:
        """A number, of a value at hand.

        Raises:
            UsageError: none.
        """
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise UsageError(f"{name}: got {text!r}, expected a number")
        return number


_SEVERAL = ("--profile", "--minShapes", "--optShapes", "--maxShapes")


def _once(name: str) -> bool:
    return not FLAGS[name].repeated and name not in _SEVERAL


def _with_nearest(name: str) -> str:
    near = difflib.get_close_matches(name, FLAGS, n=1, cutoff=0.8)
    return f"{name} (did you mean {near[0]}?)" if near else name
