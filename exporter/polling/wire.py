"""The wire to one source: its HTTP client under its budget, made from its section of the config."""

import ssl
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from exporter import __version__
from exporter.clock import Clock
from exporter.platform import Platform
from exporter.platform.section import SourceConfig
from exporter.wire.api import Api
from exporter.wire.budget import Budget


def make_api(
    section: SourceConfig,
    platform: Platform,
    clock: Clock,
    *,
    on_wait: Callable[[str, float], None] = lambda cause, seconds: None,
    on_request: Callable[[str, str], None] = lambda endpoint, code: None,
    span: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> Api:
    """The wire to one source, under its budget."""
    budget = Budget(
        clock,
        share=section.poll.budget_share,
        default_per_minute=platform.requests_per_minute,
        fixed_per_minute=section.poll.requests_per_minute,
        on_wait=on_wait,
    )
    try:
        trust = None if section.tls_ca_file is None else ssl.create_default_context(cafile=section.tls_ca_file)
    except OSError as exc:
        words = "is no PEM file" if isinstance(exc, ssl.SSLError) else exc.strerror
        raise OSError(f"tls_ca_file of {section.url} cannot be used: {words}") from None
    return Api(
        base_url=section.url,
        clock=clock,
        budget=budget,
        auth=platform.auth(section),
        user_agent=f"automation-exporter/{__version__}",
        timeout=section.timeout,
        proxy=section.proxy,
        ssl=trust,
        on_request=on_request,
        error_detail=platform.error_detail,
        span=span,
    )
