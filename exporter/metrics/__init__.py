"""Metrics: a projection of the model, held in memory and written out when Prometheus asks; a scrape only reads."""
