"""Every installed loss through the conformance kit. What a loss is right to fail, its spec says (`deviations`)."""

import warnings

import pytest

from embedloss import list_losses
from embedloss.testing import parametrize_with_checks


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about widths and deprecated names that are tried on purpose
        yield


@parametrize_with_checks(list_losses(), processes=True)
def test_conformance(case, check):
    check(case)


def test_deviations_are_few():
    deviating = {spec.name: dict(spec.deviations) for spec in list_losses() if spec.deviations}
    assert sum(len(found) for found in deviating.values()) <= 6, deviating
