"""Tests: of core in milliseconds, of the broker on a real RabbitMQ, of webhooks over real sockets."""
