"""What the ``error`` list of a failed run means: the status a call was answered with decides, names never do, and
nothing of what was sent or answered leaves.
"""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.model import DeadLetter, Error, ErrorClass
from exporter.model.subject import error_fingerprint
from exporter.platforms.qlik.errors import read_error
from exporter.simulator.qlik.failures import CALLS, ERROR_CLASSES, elements

#: Names somebody may give a connector or a block, each of which sounds like an error of another class.
NAMES = (
    "Update Quota", "Access Denied", "Rate limit", "Timeout Tracker", "Not Found", "Invalid token", "Bad Gateway",
    "HTTP 429", "status code 503", "cURL error 7", "The required inputs were not received", "Already exists",
    "out of memory", "Certificates", 'My "Quota" CRM', "it's forbidden", "returned 401", "resulted in a `429",
    "Quota - Exceeded", "Error calling endpoint", "",
)  # fmt: skip


def called(
    status: object = None,
    *,
    source: str = "Acme CRM",
    name: str = "Create Ticket",
    url: object = "https://api.acme.example/v1/tickets",
    body: object = None,
    sent: object = None,
    **more: Any,
) -> dict[str, Any]:
    """An element of ``error`` as recorded."""
    request = {"url": url, "method": "POST"} | ({} if sent is None else {"body": sent})
    element = {
        "error": f'Error calling endpoint "{source} - {name}"',
        "endpoint": {"name": name, "datasource": source},
        "request": request,
    }
    answered = {} if status is None else {"response": {"status": status, "body": body}}
    return element | answered | {"external error": True} | more


def read(*items: object) -> Error:
    error = read_error(list(items))
    assert error is not None
    return error


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, ErrorClass.VALIDATION),
        (401, ErrorClass.AUTH),
        (403, ErrorClass.PERMISSION),
        (404, ErrorClass.NOT_FOUND),
        (408, ErrorClass.TIMEOUT),
        (409, ErrorClass.CONFLICT),
        (422, ErrorClass.VALIDATION),
        (429, ErrorClass.THROTTLED),
        (500, ErrorClass.PLATFORM),
        (502, ErrorClass.PLATFORM),
        (503, ErrorClass.PLATFORM),
        (504, ErrorClass.TIMEOUT),
        ("401", ErrorClass.AUTH),
        (200, ErrorClass.UNKNOWN),
        (0, ErrorClass.UNKNOWN),
        (True, ErrorClass.UNKNOWN),
        ([], ErrorClass.UNKNOWN),
        (None, ErrorClass.UNKNOWN),
    ],
)
def test_the_status_a_call_was_answered_with_decides(status: object, expected: ErrorClass) -> None:
    for name in NAMES:
        error = read(called(status, source=name, name=name, body={"detail": "Quota exceeded, access denied"}))
        assert error.error_class is expected, name


def test_a_recorded_failure_of_a_call() -> None:
    error = read(called(401, body={"status": 401, "detail": "Invalid token"}))
    assert error == Error(
        error_class=ErrorClass.AUTH,
        type="401 Unauthorized",
        message='Error calling endpoint "Acme CRM - Create Ticket": Invalid token',
        step_type="Acme CRM",
        status=401,
    )


@pytest.mark.parametrize(
    "text", ["The required inputs were not received.", "The automation did not receive the required inputs"]
)
def test_a_run_that_lacks_its_inputs_fails_again_with_the_same(text: str) -> None:
    assert read({"error": text}).error_class is ErrorClass.VALIDATION


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "worded",
    [
        'Error calling endpoint "{}"',
        'Error calling endpoint "Acme CRM - {}"',
        "Error calling endpoint 'Acme CRM - {}'",
        'Error in block "{}"',
        'Error running snippet "{}": it broke',
        "Connector “{}” failed",
    ],
)
def test_a_quoted_name_decides_nothing_where_no_status_does(worded: str, name: str) -> None:
    assert read({"error": worded.format(name)}).error_class is ErrorClass.UNKNOWN


@pytest.mark.parametrize("name", NAMES)
def test_the_words_after_a_name_still_decide(name: str) -> None:
    text = f'Error calling endpoint "{name} - {name}": cURL error 28: Operation timed out'
    assert read(called(source=name, name=name, error=text)).error_class is ErrorClass.TIMEOUT
    bare = f"Error calling endpoint {name} - {name}: cURL error 28: Operation timed out"
    assert read(called(source=name, name=name, error=bare)).error_class is ErrorClass.TIMEOUT


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"detail": "Gone fishing", "message": "no", "title": "never"}, ": Gone fishing"),
        ({"detail": None, "message": "Gone fishing", "title": "never"}, ": Gone fishing"),
        ({"title": "Gone fishing"}, ": Gone fishing"),
        ({"detail": {"deep": "Jane"}}, ""),
        ({"customer": "Jane"}, ""),
        ("Jane", ""),
        (["Jane"], ""),
        (7, ""),
        (None, ""),
    ],
)
def test_of_an_answer_one_sentence_joins_the_message(body: object, expected: str) -> None:
    assert read(called(500, body=body)).message == f'Error calling endpoint "Acme CRM - Create Ticket"{expected}'


def test_a_call_without_words_of_its_own_is_an_error_all_the_same() -> None:
    error = read(called(503, error=None, body={"message": "down"}))
    assert error == Error(
        error_class=ErrorClass.PLATFORM,
        type="503 Service Unavailable",
        message="down",
        step_type="Acme CRM",
        status=503,
    )
    assert read(called(503, error=None)).message is None


def test_two_statuses_of_one_endpoint_are_two_fingerprints() -> None:
    def fingerprint(status: int) -> str:
        return error_fingerprint(
            DeadLetter(id="r", workflow_id="w", opened_at=1.0, error=read(called(status, body=None)))
        )

    assert len({fingerprint(status) for status in (401, 500, 502, 503)}) == 4


def test_what_was_asked_for_is_not_in_the_message_even_if_the_answer_quotes_it() -> None:
    url = "https://files.customer.example/jane-roe/secret-plans"
    detail = f"POST {url} with customer Jane-Roe-4711 refused; see https://docs.customer.example/e/1"
    message = read(called(400, url=url, sent={"who": ["Jane-Roe-4711"]}, body={"detail": detail})).message or ""
    assert message.endswith("refused; see [url]")
    assert not any(word in message for word in ("customer.example", "jane", "secret-plans", "4711"))
    relative = read(called(400, url="/v1/jane-roe", body={"detail": "no such path: /v1/jane-roe"})).message or ""
    assert "jane" not in relative


def test_the_simulators_failures_have_the_classes_it_says_they_have() -> None:
    read_as = {
        (name, ordinal): read(*elements(name, None, ordinal=ordinal)).error_class.value
        for name in ERROR_CLASSES
        for ordinal in range(8)
    }
    assert read_as == {(name, ordinal): name for name, ordinal in read_as}
    assert {read(*elements(name, None, ordinal=1)).step_type for name in CALLS} == {
        source for source, *_ in CALLS.values()
    }


# Laws

words = st.text(max_size=60)
json = st.recursive(
    st.none() | st.booleans() | st.integers() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


@given(source=words | st.sampled_from(NAMES), name=words | st.sampled_from(NAMES), status=st.integers(400, 599))
def test_no_name_changes_the_class(source: str, name: str, status: int) -> None:
    assert read(called(status, source=source, name=name)).error_class is read(called(status)).error_class
    assert read(called(source=source, name=name)).error_class is ErrorClass.UNKNOWN
    alone = {"error": f'Error calling endpoint "{source} - {name}"'}
    assert read(alone).error_class is ErrorClass.UNKNOWN


@given(url=json, sent=json, body=json, status=st.none() | st.integers(400, 599))
def test_nothing_sent_or_answered_changes_the_class(
    url: object, sent: object, body: object, status: int | None
) -> None:
    error = read(called(status, url=url, sent=sent, body=body))
    assert (error.error_class, error.type, error.step_type) == (
        read(called(status)).error_class,
        read(called(status)).type,
        "Acme CRM",
    )


@given(data=st.data(), keys=st.lists(words.filter(lambda k: k not in ("detail", "message", "title")), max_size=3))
def test_nothing_sent_or_answered_leaves(data: st.DataObject, keys: list[str]) -> None:
    secret = "Roe-Jane-4711"
    body: object = secret
    for key in keys:
        body = data.draw(st.sampled_from([{key: body}, [body], {"detail": [body]}]))
    path = data.draw(st.sampled_from(["/{}", "/a/{}/b", "/?q={}", "/a?x=1#{}"])).format(secret)
    url = f"https://{data.draw(st.sampled_from(['', secret + '.']))}customer.example{path}"
    detail = data.draw(st.sampled_from(["failed", f"{url} failed", f"<{url}>", f"'{url}'", f"({secret}) failed"]))
    for shown in (body, {"detail": detail}):
        error = read(called(500, url=url, sent={"x": [body]} if body is not secret else secret, body=shown))
        assert secret not in repr(error)
        assert "customer.example" not in repr(error)
