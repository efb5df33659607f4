"""Traces: one attempt of one run is one trace, sent when it is finished and marked once the collector has it."""
