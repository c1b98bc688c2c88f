"""The load generator: schedules drawn beforehand, processes that send them, histograms of what came back.

schedule                  when requests start, decided before the first is sent
target                    what is asked: a model, a whole search, or a peer
worker · generator        the processes that send, and the one that sets them going
histogram · windows       what they saw, mergeable over processes
"""
