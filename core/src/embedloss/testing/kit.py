"""Run the checks: without pytest (`check_loss`), or as its tests (`parametrize_with_checks`)."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from embedloss.errors import EmbedlossError
from embedloss.loss import Loss
from embedloss.spec import LossSpec
from embedloss.testing.case import Case, NotApplicable, specs_inside
from embedloss.testing.checks import CHECKS, Check

Subject = LossSpec | Loss | str
Expected = Mapping[str, str]


@dataclass(frozen=True)
class Result:
    """What a check found: "passed", "failed", "expected failure", "unexpected pass" or "not applicable", and why."""

    check: str
    group: str
    status: str
    message: str = ""


@dataclass(frozen=True)
class Report:
    """All results of a loss. `report.ok` is False if a check failed, or passed that was expected to fail."""

    loss: str
    results: Sequence[Result] = field(default_factory=tuple)

    @property
    def failures(self) -> list[Result]:
        """The results that make the loss not conform."""
        return [r for r in self.results if r.status in ("failed", "unexpected pass")]

    @property
    def ok(self) -> bool:
        """Whether the loss conforms."""
        return not self.failures

    def __getitem__(self, check: str) -> Result:
        return next(r for r in self.results if r.check == canonical(check))

    def raise_if_failed(self) -> Report:
        """The report itself, or an `AssertionError` that lists every failure."""
        if not self.ok:
            raise AssertionError(str(self))
        return self

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {"loss": self.loss, "ok": self.ok, "checks": [vars(r) for r in self.results]}

    def __str__(self) -> str:
        width = max((len(r.check) for r in self.results), default=0)
        lines = [f"{self.loss}: {'conforms' if self.ok else f'{len(self.failures)} checks failed'}"]
        lines += [f"  {r.check.ljust(width)}  {r.status}{': ' + r.message if r.message else ''}" for r in self.results]
        return "\n".join(lines)


def canonical(name: str) -> str:
    """The name of a check as the report has it: "check_row_order" and "row-order" are "row_order"."""
    return name.removeprefix("check_").replace("-", "_")


def _checked(expected: Expected | None) -> dict[str, str]:
    found = {}
    for name, reason in (expected or {}).items():
        if canonical(name) not in CHECKS:
            raise ValueError(f"there is no check '{name}'; checks: {', '.join(CHECKS)}")
        if not reason.strip():
            raise ValueError(f"say why '{name}' is expected to fail")
        found[canonical(name)] = reason
    return found


def _inherited(case: Case) -> dict[str, str]:
    """What the losses inside a sum or modifier are right to fail; it may or may not show outside."""
    inside = [spec for spec in specs_inside(case.original) if spec.name != case.spec.name]
    return {name: reason for spec in inside for name, reason in _checked(spec.deviations).items()}


def all_checks(subject: Subject | None = None, *, processes: bool = False) -> list[Check]:
    """The checks of a loss, in order; those that do not apply to it say so when they are run.

    Args:
        subject: leave it out for all checks.
        processes: also the check that starts two processes.
    """
    checks = [check for check in CHECKS.values() if processes or not check.processes]
    spec = subject if isinstance(subject, LossSpec) else subject.spec if isinstance(subject, Loss) else None
    if spec is not None and spec.consumes != "scores" and not spec.modifier:
        checks = [check for check in checks if check.name != "mask"]
    return checks


def run_check(check: Check, case: Case) -> None:
    """One check on every format and kind of input that the loss takes.

    Raises:
        AssertionError: what is wrong, with the format.
        NotApplicable: it applies to none of them.
    """
    with _one_thread():
        _run_check(check, case)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """The tensors are small: more threads only cost time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run_check(check: Check, case: Case) -> None:
    if check.once:
        check.function(case)
        return
    variants = case.variants()
    reasons: list[str] = []
    for format_, kind in variants:
        try:
            check.function(case.variant(format_, kind))
        except NotApplicable as reason:
            reasons.append(str(reason))
        except Exception as error:
            where = format_.name if kind == "embeddings" else f"{format_.name}, called with scores"
            text = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            raise AssertionError(f"[{where}] {text}") from error
    if len(reasons) == len(variants):
        raise NotApplicable("; ".join(dict.fromkeys(reasons)))


def check_loss(
    spec_or_loss_or_name: Subject,
    *,
    expected_failures: Expected | None = None,
    processes: bool = False,
    dim: int | None = None,
    checks: Iterable[str] | None = None,
) -> Report:
    """Run the conformance kit on one loss; needs no pytest.

    Args:
        spec_or_loss_or_name: a spec (of a loss that need not be installed), a loss object, or the name or expression of an
            installed loss.
        expected_failures: check -> why this loss is right to fail it, beside the spec's `deviations`. A check that passes
            nevertheless is reported.
        processes: also compare two processes with one (takes seconds).
        dim: width of the embeddings, where the kit does not find one that the loss takes.
        checks: only these.

    Returns:
        A report: print it, ask `report.ok`, or call `report.raise_if_failed()`.

    Example:
        >>> check_loss("mnrl(scale=20)").raise_if_failed()  # doctest: +SKIP
    """
    expected = _checked(expected_failures)
    case = Case(spec_or_loss_or_name, dim)
    wanted = None if checks is None else {canonical(name) for name in checks}
    try:
        _ = case.original
    except Exception as error:  # nothing else can be asked of a loss that cannot be made
        text = str(error) if isinstance(error, EmbedlossError) else f"{type(error).__name__}: {error}"
        return Report(case.name, (Result("target", "spec", "failed", f"the loss cannot be made: {text}"),))
    expected = {**_checked(case.spec.deviations), **expected}
    inherited = _inherited(case)
    results = []
    for check in all_checks(spec_or_loss_or_name, processes=processes or wanted is not None):
        if wanted is not None and check.name not in wanted:
            continue
        status, message = "passed", ""
        try:
            run_check(check, case)
        except NotApplicable as reason:
            status, message = "not applicable", str(reason)
        except Exception as error:  # a stranger's loss may raise anything
            text = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            status, message = "failed", text
        if check.name in expected:
            if status == "failed":
                status, message = "expected failure", f"{expected[check.name]} ({message})"
            elif status == "passed":
                status, message = "unexpected pass", f"expected to fail: {expected[check.name]}"
        elif status == "failed" and check.name in inherited:
            status, message = "expected failure", f"{inherited[check.name]} ({message})"
        results.append(Result(check.name, check.group, status, message))
    return Report(case.name, tuple(results))


class _Test:
    """A check as pytest's parameter: called with a case, skips where the check does not apply."""

    def __init__(self, check: Check) -> None:
        self.check = check

    def __call__(self, case: Case) -> None:
        import pytest

        try:
            run_check(self.check, case)
        except NotApplicable as reason:
            pytest.skip(str(reason))
        except Exception:
            inside = [spec for spec in specs_inside(case.original) if spec.name != case.spec.name]
            reasons = [
                spec.deviations[name] for spec in inside for name in spec.deviations if canonical(name) == self.check.name
            ]
            if not reasons:
                raise
            pytest.xfail(reasons[0])

    def __repr__(self) -> str:
        return f"check_{self.check.name}"


def _cases(
    subjects: Iterable[Subject], expected: Mapping[str, Any] | None, processes: bool
) -> Iterator[tuple[Case, Check, str | None]]:
    subjects = list(subjects)
    cases = [Case(subject) for subject in subjects]
    expected = dict(expected or {})
    by_loss = {name: value for name, value in expected.items() if isinstance(value, Mapping)}
    unknown = sorted(set(by_loss) - {case.name for case in cases})
    if unknown:
        raise ValueError(f"expected_failures names '{unknown[0]}', which is not tested here")
    for_all = _checked({name: value for name, value in expected.items() if name not in by_loss})
    for subject, case in zip(subjects, cases, strict=True):
        deviations = subject.deviations if isinstance(subject, LossSpec) else case.spec.deviations
        mine = {**for_all, **_checked(deviations), **_checked(by_loss.get(case.name))}
        for check in all_checks(subject, processes=processes):
            yield case, check, mine.get(check.name)


def parametrize_with_checks(
    specs: Iterable[Subject], expected_failures: Mapping[str, Any] | None = None, *, processes: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A pytest decorator: one test for each loss and check, named like `cosent-row_order`.

    Args:
        specs: specs, losses, names or expressions.
        expected_failures: check -> reason, or loss -> {check: reason}. Such a test is an xfail and fails if it passes.
        processes: also compare two processes with one.

    Example:
        >>> @parametrize_with_checks([SPEC])  # doctest: +SKIP
        ... def test_conformance(case, check):
        ...     check(case)
    """
    import pytest

    parameters = []
    for case, check, reason in _cases(specs, expected_failures, processes):
        marks = [] if reason is None else [pytest.mark.xfail(reason=reason, strict=True)]
        parameters.append(pytest.param(case, _Test(check), id=f"{case.name}-{check.name}", marks=marks))

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        names = list(inspect.signature(function).parameters)
        if len(names) < 2:
            raise TypeError("the test function must take (case, check) and call check(case)")
        decorated: Callable[..., Any] = pytest.mark.parametrize(names[:2], parameters)(function)
        return decorated

    return decorate
