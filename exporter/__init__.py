"""automation-exporter: metrics, traces and safe retries for automation platforms."""

__version__ = "0.1.0"
