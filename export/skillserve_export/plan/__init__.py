"""From a padded graph to a TensorRT plan, in NVIDIA's container, on the GPU that will run it.

    door.py      the one door to TensorRT
    gpu.py       the one door to the CUDA driver: which GPU this is
    identity.py  what a plan depends on, and the key that follows from it
    cache.py     plans that were built before; TensorRT's timings
    build.py     model folder → the same folder with its plan
    cli.py       the command `skillserve plan`

Runs with the packages of the base and TensorRT's Python module. `door.py` and `gpu.py` are all that cannot run
without a GPU: not verified on hardware.
"""
