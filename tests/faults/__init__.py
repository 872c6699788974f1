"""What becomes of the jobs in flight when something dies, hangs or lies.

    table.py     the faults: how each is caused and what is expected; add yours there
    run.py       one fault under load, and what became of the jobs
    doors.py     the ways in: as a remote worker, as a live runner
    ledger.py    every job of an orchestrator, as its own log tells it
    load.py      callers, who keep a steady number of jobs in flight
    world.py     the processes: Ray cluster, orchestrator, network, bridge
    cluster.py   the Ray cluster as a process
    model.py     the fake model that the load runs on
    network.py   the ways between bridge and orchestrator, which can be cut
    disk.py      the journal's disk, which can be filled
    clock.py     the bridge's wall clock, which can be set (clock.c)
    report.py    the summary
    __main__.py  `make faults`: the whole table
    soak.py      `make soak`: random faults for as long as you like, and memory

`test_faults.py` is the short form: the faults that need no waiting, as part of `make test`.
"""
