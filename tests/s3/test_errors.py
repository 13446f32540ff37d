"""What a source's answer means, how long to wait and what is too slow, as tables."""

from __future__ import annotations

from datetime import date

import pytest

from server.errors import ExportChanged, SourceError, SourceRefused, SourceUnreachable
from server.s3.errors import Answer, BucketPlace, Remedy
from server.s3.retry import RateWatch, RetryCounter, RetryPolicy

KEY = f"metrics-day-{date(2026, 11, 20)}.json.gz"


def test_tries_end_without_progress_and_begin_again_with_it() -> None:
    """A number of failures in a row is the end; a window's worth of new bytes resets the count."""
    patience = RetryPolicy(tries=3, least_rate=10, window=10, first_pause=1, longest_pause=3)
    tries = RetryCounter(patience)
    assert tries.failed(0) is not None and tries.failed(99) is not None
    assert tries.failed(100) is not None and tries.failed(150) is not None
    assert tries.failed(199) is None
    pauses = [patience.pause(failures) for failures in (1, 2, 3, 4, 1000)]
    assert all(0.5 * full <= pause <= full for full, pause in zip((1, 2, 3, 3, 3), pauses, strict=True))


def test_refused_credentials_have_one_more_try() -> None:
    """One new session for each stretch of progress."""
    tries = RetryCounter(RetryPolicy(least_rate=10, window=10))
    assert tries.refused(0) == 0.0
    assert tries.refused(50) is None
    assert tries.refused(100) == 0.0


def test_the_rate_is_measured_over_a_sliding_window() -> None:
    """A fast start does not excuse a trickle, and a short pause is not a trickle."""
    pace = RateWatch(RetryPolicy(least_rate=100, window=10))
    assert not pace.too_slow(1, 5_000)
    assert not any(pace.too_slow(1, 2) for _ in range(9))
    assert pace.too_slow(1, 2)
    steady = RateWatch(RetryPolicy(least_rate=100, window=10))
    assert not any(steady.too_slow(0.5, 60) for _ in range(500))
    assert not steady.too_slow(5, 600)


@pytest.mark.parametrize(
    ("answer_", "key", "error", "remedy"),
    [
        (Answer(412, "PreconditionFailed"), KEY, ExportChanged, Remedy.NONE),
        (Answer(404, "NoSuchKey"), KEY, ExportChanged, Remedy.NONE),
        (Answer(404, "NoSuchBucket"), KEY, SourceRefused, Remedy.NONE),
        (Answer(404, "404"), None, SourceRefused, Remedy.NONE),
        (Answer(403, "AccessDenied"), None, SourceRefused, Remedy.NEW_CREDENTIALS),
        (Answer(403, "RequestTimeTooSkewed"), KEY, SourceRefused, Remedy.NONE),
        (Answer(400, "RequestTimeout"), KEY, SourceUnreachable, Remedy.WAIT),
        (Answer(504, "504"), None, SourceUnreachable, Remedy.WAIT),
        (Answer(405, "MethodNotAllowed"), None, SourceRefused, Remedy.NONE),
    ],
)
def test_every_answer_has_one_meaning(
    answer_: Answer, key: str | None, error: type[SourceError], remedy: Remedy
) -> None:
    """What each status and S3 error code requires of us."""
    place = BucketPlace("exports", "pre/", "eu-west-1", "https://me:word@s3.example.com:9000/x")
    setback = place.meaning(answer_, key)
    assert (type(setback.error), setback.remedy) == (error, remedy)
    assert setback.error.hint and "word@" not in f"{setback.error}{setback.error.hint}"


def test_a_place_without_an_endpoint_is_at_aws() -> None:
    """Sentences name the region's AWS endpoint, and hints pass the region to the AWS tool."""
    setback = BucketPlace("exports", "", "eu-west-1", None).meaning(Answer(403, "AccessDenied"))
    assert setback.error.hint.endswith("aws s3 ls s3://exports/ --region eu-west-1")
    assert "s3.eu-west-1.amazonaws.com" in str(BucketPlace("exports", "", "eu-west-1", None).unreachable("x").error)
