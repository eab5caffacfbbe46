"""Values and functions that decide everything and do nothing.

No I/O, no clock, no randomness, no logging, no event loop: the time (`now`, Unix seconds) and every
random number are arguments.  Read in this order: `event`, `subscription`, `matching`, `delivery`,
`balancer`, `health`, `schedule`; then `signature` and `address`, which guard the edges.
"""
