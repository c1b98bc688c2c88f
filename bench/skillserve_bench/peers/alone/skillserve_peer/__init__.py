"""What runs in the environment of a peer: a small daemon around a library, and nothing of skillserve.

A peer has an environment of its own, so this package imports the standard library, numpy, FAISS and, in the module of
its engine, that engine's library. It lies alone in its folder, so that the folder can be put on the path of
another interpreter. What it needs to know stands in a folder that skillserve wrote (`assignment.py` of the peers):
texts come formatted, the catalogue embedded.

    python -m skillserve_peer ENGINE FOLDER

    __main__    reads the folder, opens the engine, says `ready` on stdout, and serves
    job         what is in the folder
    catalogue   FAISS over the catalogue, and the order of what was reranked
    lines       the protocol
    turns       one search at a time, or many at once
    engines     engine → module
"""
