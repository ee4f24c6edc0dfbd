"""The power of the host is cut under load: what was acknowledged is there, and nothing is torn. `make soak` does it for longer."""

import pytest

from tests.support.pools import lacks_encryption
from tests.support.powercut import cut_power


@pytest.mark.root
@pytest.mark.fault
@pytest.mark.slow
def test_a_power_cut_loses_nothing_that_was_acknowledged() -> None:
    assert cut_power(cuts=1, databases=2) > 0


@pytest.mark.root
@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.skipif(bool(lacks_encryption()), reason=lacks_encryption())
def test_nor_does_one_of_an_encrypted_pool() -> None:
    assert cut_power(cuts=1, databases=1, encrypted=True) > 0
