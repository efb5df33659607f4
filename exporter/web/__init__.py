"""What the service answers over HTTP: metrics, health, status, webhooks."""
