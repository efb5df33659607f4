"""Recording rules and alerts for Prometheus, generated from one table and from what a user calls good enough."""
