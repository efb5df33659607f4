"""The wire: HTTP to the platforms under a budget, who sends to us and what, one decoder for whatever comes in."""
