"""The losses of this family under the conformance kit, which every plugin can run."""

from __future__ import annotations

from embedloss import list_losses
from embedloss.testing import parametrize_with_checks


@parametrize_with_checks(list_losses(family="triplet"))
def test_conformance(case, check):
    check(case)
