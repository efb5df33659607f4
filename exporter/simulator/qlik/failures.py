"""How runs of the Qlik simulator fail: what the ``error`` of a run says for each class, and whether a retry helps."""

from http import HTTPStatus

#: Where the remote API said no: data source, endpoint and method of a call, and the status it was answered with. The
#: names mean nothing: they are what somebody called a connector.
CALLS = {
    "auth": ("Update Quota", "List Files", "GET", 401),
    "permission": ("Timeout Tracker", "Do Reload", "POST", 403),
    "not_found": ("Invalid Token Desk", "Get Ticket", "GET", 404),
    "timeout": ("Forbidden Planet", "Upload File", "PUT", 408),
    "conflict": ("Acme CRM", "Update Contact", "PATCH", 409),
    "validation": ("Not Found Books", "Create Invoice", "POST", 422),
    "throttled": ("Access Denied Shop", "List Orders", "GET", 429),
    "platform": ("Conflict Minerals", "Upload Report", "PUT", 502),
}
#: What a run says that failed without an answer.
MESSAGES = {
    "network": "cURL error 7: Failed to connect to api.shop.example port 443: Connection refused",
    "validation": "The required inputs were not received.",
    "quota": "Run limit exceeded: the tenant has used up its automation runs",
    "killed": "Allowed memory size of 268435456 bytes exhausted (tried to allocate 20480 bytes)",
    "unknown": "Something went wrong",
}
ERROR_CLASSES = tuple(sorted(CALLS.keys() | MESSAGES.keys()))
RETRY_HELPS = {
    "network": 0.85,
    "timeout": 0.8,
    "throttled": 0.85,
    "platform": 0.75,
    "conflict": 0.5,
    "killed": 0.4,
    "unknown": 0.3,
}


def elements(error_class: str, words: str | None, *, ordinal: int) -> list[dict[str, object]]:
    """The ``error`` list of a run that failed so, in the two shapes that were recorded: a call that was answered with a
    status, or words alone (always for ``words`` of somebody's own).
    """
    call = CALLS.get(error_class)
    unmet = error_class == "validation" and ordinal % 2 == 0
    if words is not None or call is None or unmet:
        return [{"error": words or MESSAGES[error_class]}]
    source, endpoint, method, status = call
    phrase = HTTPStatus(status).phrase
    bodies: tuple[object, ...] = (
        {"status": status, "detail": f"{phrase} for customer-{ordinal}@example.com", "customer": "Jane Roe"},
        {"message": phrase},
        phrase,
        None,
    )
    return [
        {
            "error": f'Error calling endpoint "{source} - {endpoint}"',
            "endpoint": {"name": endpoint, "datasource": source},
            "request": {"url": f"https://api.acme.example/v1/customers/{ordinal}?key=k-4711", "method": method},
            "response": {"status": status, "body": bodies[ordinal % len(bodies)]},
            "external error": True,
        }
    ]
