"""Faults, under steady load, and an account of every event: `python -m tests.faults`.

    scenarios   what is done: a dispatcher dies, a node dies, a connection is cut, an alarm goes off
    stage       what it is done to: a broker, dispatchers, receivers, a producer
    ledger      the account: what was owed, what was seen, what is missing, what there is twice

The law here: every event that was published with a confirm ends delivered to each subscription, as a
dead letter, rejected, or waiting in the ladder; the sums agree exactly, and duplicates stay below what
was in flight when the faults struck.
"""
