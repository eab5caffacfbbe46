"""Delivers domain events from RabbitMQ to subscribed webhooks.

The main path, in the order an event takes it:

    broker.consumer   a message arrives on the intake lane
    dispatch          decode, validate, match: one delivery per subscription
    deliver           a round: pick a target, send, decide, carry the decision out
    webhook.sender    one attempt: one signed HTTP request
    broker.publisher  what a round leaves over: delay ladder, backlog lane, dead letters
    broker.consumer   everything owed is durable: the message is acked

`app` wires these together; `cli` is the way in; `core` holds the decisions as pure functions.
"""

__version__ = "0.1.0"
