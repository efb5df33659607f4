"""Receiving webhooks: whether the sender is who it should be (``schemes``, configured in ``config``), what envelope the
events came in (``cloudevents``), and what they say.
"""
