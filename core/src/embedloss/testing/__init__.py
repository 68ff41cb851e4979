"""What plugin authors run: the conformance kit, and tiny models for their own tests."""

from embedloss.testing.case import Batch, Case, NotApplicable, Run
from embedloss.testing.checks import CHECKS, Check
from embedloss.testing.kit import Report, Result, all_checks, check_loss, parametrize_with_checks, run_check

__all__ = [
    "CHECKS",
    "Batch",
    "Case",
    "Check",
    "NotApplicable",
    "Report",
    "Result",
    "Run",
    "all_checks",
    "check_loss",
    "parametrize_with_checks",
    "run_check",
]
