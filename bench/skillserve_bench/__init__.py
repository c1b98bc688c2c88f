"""The bench room: measures quality and speed of a served model against independent baselines, and reports them.

One module per task, so that loads, peers and scenarios can be added beside each other:

    environment · processor · gpus    what machine this is, and who used its cores
    figures · alternation · intervals medians, quantiles and ratios with what is known of their accuracy
    server · inprocess · peers/       what is measured: a served model, the same graph here, other implementations
    workload · supply · messages      the requests
    load/                             the processes that send them, open and closed loop
    levels · measurement · latency    one load on one contender, and all of them in turn
    scenarios/                        one question each
    report · page · charts · compare  reports, for people and for comparison
"""
