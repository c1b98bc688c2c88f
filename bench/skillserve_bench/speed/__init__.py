"""How fast a graph is: as a share of what the machine can do, and beside others, on one workload.

One module per question; `skillserve_bench.scenarios.speed` asks them all in one run.

    flops · gemm                 what a model has to multiply, and how fast this machine multiplies
    workload                     shuffled skills and requests, and candidates to be reranked
    contenders · served · peers  who is measured
    check                        whether the rows are right, and what they are worth in rankings
    operators                    where the time goes, by operator and layer
    field                        everybody who takes part, opened and checked
    outcome · goals              figures, and what they were hoped to be
    tables · summary             how they are shown
"""
