"""The bench room: measures quality and speed of a served model against independent baselines, and reports them.

One module per task, so that loads, peers and scenarios can be added beside each other:

    environment · processor      what machine this is, and who used its cores
    figures · alternation        medians with their spread; contenders measured in turns
    server · inprocess · peers/  what is measured: a served model, the same graph here, other implementations
    workload · load              the requests, and the clients that send them
    scenarios/                   one question each
    report                       the one place that writes a report
"""
