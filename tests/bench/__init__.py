"""Measures the dispatcher, and beside it a bare loop of the same libraries: `python -m tests.bench`.

    plan        how much is measured
    processes   programs that are measured: started, paused, ended; their CPU time and memory
    events      what is published, and the confirmed publishing of it
    receiver    who is delivered to: nginx, and a small program that fails once or notes arrivals
    station     the dispatcher under measurement, its subscriptions and queues
    bare        the bare loops: consume, POST, ack, and nothing else
    cost        CPU time and throughput of a delivery, interleaved with the bare loops'
    latency     from publish to arrival, at half load
    detours     what a delivery costs that fails once, or finds its target saturated
    workers     what a second worker adds
    scale       100,000 subscriptions
    reload      a change of one of them: its pause, and how long it takes
    isolation   what the healthy get while others are sick
    ward        the subscribers that fall sick
    small_http  what hook and ward have in common
    report      rows, table, JSON

Machines are shared and noisy: what is compared runs in turns (A B A B), and the ratio of each pair counts.
"""
