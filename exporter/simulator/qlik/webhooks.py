"""Qlik's webhooks: the one subscription whose deliveries are sent, their signature, and the resource that tells of it.

One tenant webhook exists from the start; its deliveries are what ``take_deliveries`` hands out, because the simulator
itself calls nobody. Webhooks created through the API are kept and shown, and never sent. Whoever sends reports the
answer to ``delivered``; after too many failures in a row the platform disables the webhook (Qlik documents that it does
so, not after how many), and what ends meanwhile is lost to it.
"""

import hashlib
import hmac
import uuid
from collections import deque
from urllib.parse import urlsplit

from exporter.simulator.core import Delivery
from exporter.simulator.qlik.requests import Refused
from exporter.simulator.qlik.wire import ENVELOPES, RUN_ENDED, Json, event_body, stamp
from exporter.simulator.qlik.world import DAY, Run

LOG_SECONDS = 7 * DAY
LOG_MAX = 2000
EVENT_TYPES: list[Json] = [
    {"name": RUN_ENDED, "title": "Automation run ended", "levels": ["tenant", "user"], "category": "Automations"}
]
PATCHABLE = ("name", "description", "url", "eventTypes", "headers", "enabled", "enableCloudEventDelivery")


class Webhooks:
    """The webhooks of the tenant and what became of their deliveries."""

    def __init__(self, *, envelope: str, secret: str | None, failures_max: int, owner_id: str, now: float) -> None:
        if envelope not in ENVELOPES:
            raise ValueError(f"envelope must be one of {', '.join(ENVELOPES)}")
        self.envelope = envelope
        self.hooks: dict[str, Json] = {}
        self._secret = secret
        self._failures_max = failures_max
        self._failures = 0
        self._log: deque[tuple[float, bytes, Json]] = deque(maxlen=LOG_MAX)
        self._sent = 0
        first: Json = {"name": "automation-exporter", "url": "https://exporter.example/webhooks/qlik", "enabled": True}
        self._own = self.create({**first, "eventTypes": [RUN_ENDED], "secret": secret}, owner_id=owner_id, now=now)
        self._own["enableCloudEventDelivery"] = envelope != "legacy"

    def deliveries(self, runs: list[Run], now: float) -> list[Delivery]:
        """One signed delivery for each run; none while the webhook is disabled or subscribes to something else."""
        events = self._own["eventTypes"]
        if not self._own["enabled"] or not isinstance(events, list) or RUN_ENDED not in events:
            return []
        return [self._delivery(event_body(run, now, envelope=self.envelope), now) for run in runs]

    def delivered(self, delivery: Delivery, status: int, now: float) -> None:
        """The receiver answered with ``status`` (0: not at all). Redirects are not followed, so they fail too."""
        entry = next((entry for _, body, entry in self._log if body == delivery.body), None)
        if 200 <= status < 300:
            self._failures = 0
            return
        if entry is not None:
            message = f"redirects are forbidden {status}" if 300 <= status < 400 else f"status {status}"
            entry |= {"status": "fail", "statusMessage": message}
            entry["response"] = {"statusCode": status, "headers": {}, "body": ""}
        self._failures += 1
        if self._failures >= self._failures_max:
            self._own |= {
                "enabled": False,
                "disabledReason": "Delivery failure threshold exceeded",
                "disabledReasonCode": "DELIVERY-FAILURE",
                "updatedAt": stamp(now),
            }

    def log(self, hook: Json, now: float) -> list[Json]:
        """The deliveries of the last seven days."""
        return [entry for at, _, entry in self._log if entry["webhookId"] == hook["id"] and at >= now - LOG_SECONDS]

    def create(self, body: object, *, owner_id: str, now: float) -> Json:
        if not isinstance(body, dict) or not body.get("name"):
            raise Refused(400, "name is required")
        url = urlsplit(str(body.get("url", "")))
        if url.scheme != "https" or "." not in (url.hostname or "") or (url.hostname or "").replace(".", "").isdigit():
            raise Refused(400, "url must be an HTTPS address of a host with a full name")
        hook: Json = {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"webhook/{len(self.hooks) + 1}")),
            "name": body["name"],
            "url": body["url"],
            "description": body.get("description", ""),
            "level": body.get("level", "tenant"),
            "enabled": body.get("enabled", False) is True,
            "eventTypes": body.get("eventTypes", []),
            "headers": body.get("headers", {}),
            "secretKeyAdded": bool(body.get("secret")),
            "ownerId": owner_id,
            "origin": "api",
            "checkCertificateRevocation": False,
            "enableCloudEventDelivery": True,
            "disabledReason": "",
            "disabledReasonCode": "",
            "createdAt": stamp(now),
            "updatedAt": stamp(now),
        }
        self.hooks[str(hook["id"])] = hook
        return hook

    def patch(self, hook: Json, operations: object, now: float) -> None:
        """JSON Patch, as far as replacing goes. Enabling a webhook forgets its failures."""
        for operation in operations if isinstance(operations, list) else [operations]:
            if not isinstance(operation, dict) or operation.get("op") != "replace" or "value" not in operation:
                raise Refused(400, "only replacing is supported")
            name = str(operation.get("path"))[1:]
            if name not in PATCHABLE:
                raise Refused(400, f"{name} cannot be patched")
            hook[name] = operation["value"]
            if name == "enabled" and hook["enabled"]:
                hook |= {"disabledReason": "", "disabledReasonCode": ""}
                if hook is self._own:
                    self._failures = 0
        hook["updatedAt"] = stamp(now)

    def _delivery(self, body: bytes, now: float) -> Delivery:
        headers = {"Content-Type": "application/json", "User-Agent": "Qlik Webhook", "Accept-Encoding": "gzip"}
        if self._secret is not None:
            headers["Qlik-Signature"] = hmac.new(self._secret.encode(), body, hashlib.sha256).hexdigest()
        self._sent += 1
        entry: Json = {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"delivery/{self._sent}")),
            "webhookId": self._own["id"],
            "eventType": RUN_ENDED,
            "status": "success",
            "statusMessage": "",
            "triggeredAt": stamp(now),
            "request": {"url": self._own["url"], "headers": headers, "body": body.decode()},
            "response": {"statusCode": 202, "headers": {}, "body": ""},
        }
        self._log.append((now, body, entry))
        return Delivery(headers=headers, body=body)
