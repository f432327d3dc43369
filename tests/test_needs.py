"""What CI has installed may not be skipped in silence."""

from __future__ import annotations

import pytest
from needs import lacking


@pytest.mark.parametrize("required", ["triton", "gstreamer,triton"])
def test_a_part_that_is_required_fails(monkeypatch: pytest.MonkeyPatch, required: str) -> None:
    monkeypatch.setenv("MEDISSEG_REQUIRE", required)
    with pytest.raises(pytest.fail.Exception, match="triton: no server"):
        lacking("triton", "no server")


@pytest.mark.parametrize("required", [None, "", "gstreamer", "tritons"])
def test_another_part_is_skipped(monkeypatch: pytest.MonkeyPatch, required: str | None) -> None:
    monkeypatch.delenv("MEDISSEG_REQUIRE", raising=False)
    if required is not None:
        monkeypatch.setenv("MEDISSEG_REQUIRE", required)
    with pytest.raises(pytest.skip.Exception, match="no server"):
        lacking("triton", "no server")
